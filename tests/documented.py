"""The commands of README and docs: found, and made small enough for a test.

Bash runs the blocks of a page with stand-ins for `python`, `pip` and other programs, which write
down what they are asked for; so variables, loops and comments mean what they mean to a reader.
"""

import dataclasses
import os
import re
import subprocess
from pathlib import Path

from stand_in import OWN
from tiny import RUN

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "launch/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`([^`]*)`")
_ROW = re.compile(r"^\| [^|]* \| `(--mode [^`]*)` \|$", re.MULTILINE)
_COMMAND = re.compile(r"(?:\w+=\S+ )*(?:python -m nvae_jax\.\S+|nvae-jax) .+")
_PROGRAMS = ("python", "python3", "pip", "nvae-jax", "pre-commit", "mkdocs", "npm", "tar")
_WRITES_DOWN = '#!/bin/bash\nprintf "%s\\x1f" "${0##*/}" "$@" >> "$CALLS"; echo >> "$CALLS"\n'


def scripts(page: Path) -> list[str]:
    """The blocks of Bash on a page, and the commands amid its text that are whole."""
    text = page.read_text()
    blocks = [block for language, block in _FENCE.findall(text) if language == "bash"]
    text = _FENCE.sub("", text)
    blocks += [f"python -m nvae_jax.main --workdir DIR {mode}" for mode in _ROW.findall(text)]
    for inline in _INLINE.findall(text):
        command = " ".join(inline.split())
        if _COMMAND.fullmatch(command) and "…" not in command:
            blocks.append(command)
    return blocks


def calls(script: str, folder: Path) -> list[list[str]]:
    """What a script asks programs for: each one's name and arguments.

    Args:
      script: for Bash.
      folder: where it runs; the stand-ins are made there.

    Raises:
      CalledProcessError: the script fails.
    """
    for place in (folder / "programs", folder / ".venv" / "bin"):
        place.mkdir(parents=True, exist_ok=True)
        for name in _PROGRAMS:
            (place / name).write_text(_WRITES_DOWN)
            (place / name).chmod(0o755)
    (folder / ".venv" / "bin" / "activate").touch()
    written = folder / "calls"
    written.write_text("")
    path = f"{folder / 'programs'}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "CALLS": str(written), "DRY_RUN": "1"}
    command = ["bash", "-euo", "pipefail", "-c", script]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return [line.split("\x1f")[:-1] for line in written.read_text().splitlines()]


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of this package at a small size.

    Attributes:
      module: what `python -m` runs.
      arguments: of the command.
      before: statements that have something stand in for what takes long.
      trains: whether it trains a model, or uses one.
      code: the exit code that is expected.
    """

    module: str
    arguments: tuple[str, ...]
    before: str = ""
    trains: bool = False
    code: int = 0


# What a page says and a test cannot have.
_PLACES = {
    r"^/archive/": "runs/",
    r"^/tmp/": "results/",
    r"^gs://BUCKET/": "runs/",
    r"^--weights=FILE_OR_URL$": "--weights=weights",
    r"^FILE$": "configs/digits.py",
    r"^--weights_sha256=\.\.\.$": "--weights_sha256=",
    r"\btest:\d+(\d)": r"test:\1",  # of a larger split
}
_MODES = {
    "sample": ["--num_images=2", "--batch_size=4"],
    "evaluate": ["--draws=2", "--images=4", "--batch_size=4"],
    "reconstruct": ["--batch_size=4"],
    "interpolate": ["--batch_size=4", "--steps=3"],
    "neighbors": ["--num_images=2"],
    "encode": ["--images=test:0-1", "--batch_size=4"],
    "decode": ["--batch_size=4"],
    "codes": ["--images=32", "--batch_size=32"],
    "edit": ["--batch_size=4"],
    "fid": ["--num_images=16", "--reference_images=16", "--batch_size=8"],
    "export": ["--batch_size=2"],
    "compress": ["--images=test:0-1", "--compare=false"],
}
_ELSEWHERE = {name: value for name, value in OWN.items() if not name.startswith("data.")}
_RARELY = dict.fromkeys(
    (f"training.{what}_interval" for what in ("log", "eval", "checkpoint", "picture")), 1000
)
_DISTRIBUTED = re.compile(r"--(distributed|coordinator|num_processes|process_id)\b")
_HERE = "import documented; documented."


def smaller(module: str, arguments: list[str]) -> Command:
    """The command, with smaller models and less of everything that takes long."""
    for pattern, place in _PLACES.items():
        arguments = [re.sub(pattern, place, argument) for argument in arguments]
    # Several processes: tests/test_processes.py.
    arguments = [a for a in arguments if not _DISTRIBUTED.match(a)]
    if "..." in arguments:  # of any run
        arguments[arguments.index("...")] = "--workdir=DIR"
    mode = re.search(r"(?:^|\0)--mode\0(\w+)", "\0".join(arguments))
    if {"--help", "--version"} & set(arguments):
        return Command(module, tuple(arguments))
    if module == "nvae_jax.tools.gallery":
        return Command(module, (*arguments, "--draws=2"), f"{_HERE}use_little()")
    if module != "nvae_jax.main":
        # Without PyTorch, or without the file, it is refused; tests/test_import_official.py.
        code = 2 if module.endswith("import_official") else 0
        return Command(module, tuple(arguments), f"{_HERE}measure_little()", code=code)
    if mode is None:
        fields = _fields("\0".join(arguments))
        arguments += [f"--config.{name}={value}" for name, value in fields.items()]
        return Command(module, tuple(arguments), f"{_HERE}train_little()", trains=True)
    if mode[1] == "prepare":
        return Command(module, tuple(arguments), f"{_HERE}prepare_nothing()")
    return Command(module, (*arguments, *_MODES.get(mode[1], [])), f"{_HERE}use_little()")


def _fields(arguments: str) -> dict[str, object]:
    """Fields of a configuration that make its run a small one."""
    name = re.search(r"--config\0(?:configs/)?(\w+)", arguments)
    if name is None:  # it goes on
        return {}
    if name[1] == "digits":
        return RUN | _RARELY | {"training.batch_size": 512}
    if name[1] == "digits_conv_vae":
        return _RARELY | {"training.epochs": 2, "training.warmup_epochs": 1}
    size = {"data.size": OWN["data.size"]} if name[1] == "image_folder" else {}
    return _ELSEWHERE | _RARELY | size


def train_little() -> None:
    """Has training only count its updates; downloaded data is noise."""
    import numpy as np
    import pytest
    import stand_in

    from nvae_jax.config.run import RunConfig
    from nvae_jax.data.sources import Dataset

    open_data = RunConfig.open_data

    def opened(run, known=None):
        if run.data.recipe is None:
            return open_data(run, known)
        shape = run.data.image.shape
        images = np.random.default_rng(0).integers(0, 256, (40, *shape), np.uint8)
        return Dataset(run.data.name, run.data.image, images[:32], images[32:])

    RunConfig.open_data = opened
    stand_in.stand_in(pytest.MonkeyPatch())


def use_little() -> None:
    """Has modes compute cheap features and serve nothing."""
    import functools

    import numpy as np
    from test_fid import cheap_features

    from nvae_jax.api import run
    from nvae_jax.modes import fid, view

    run.recalibrated = functools.partial(run.recalibrated, batches=2)
    fid.NUM_FEATURES, fid.fid_features = 16, cheap_features
    fid.load_weights = lambda source, sha256: ({"factor": np.float32(3)}, source)
    view.make_page = view.serve = lambda *_: None


def prepare_nothing() -> None:
    """Has the mode `prepare` only say what it would bring."""
    from nvae_jax.data import prepare

    prepare.prepare = lambda data: print(data)


def measure_little() -> None:
    """Has the measuring commands check what they are asked for, and print made-up figures."""
    import jax
    from test_costs import report

    from nvae_jax.compression.spent import Spent
    from nvae_jax.config.run import read_run
    from nvae_jax.measuring import aot, benchmark, comparison, compression, costs, topologies
    from nvae_jax.measuring.benchmark_report import Benchmark
    from nvae_jax.measuring.roofline import Machine
    from nvae_jax.measuring.timing import Row

    def devices(topology):
        return jax.devices(), None

    def measured(name, settings, overrides, parts, *_):
        read_run(benchmark.with_data(settings))
        rows = [Row(part, "step", [0.5], images=16, flops=4e9, bytes=2e9) for part in parts]
        machine = Machine(matrix_rate=16e9, bandwidth=4e9, call=1e-5)
        return Benchmark(
            {"devices": 1, "device_kind": "cpu"}, name, overrides, settings, machine, rows
        )

    seconds = {part: {"wall": 1.0, "processor": 1.0} for part in dataclasses.asdict(Spent())}

    def compressed(model, images, lengths, batch_sizes, compare):
        made = 100, 790.0, {"pixels": 800.0}, 1, 10.0, seconds, seconds
        records = [compression.Record(n, b, *made) for n in lengths for b in batch_sizes]
        return compression.Measured("a run", 784, records, {})

    compression.measure_compression = compressed
    compression.crops = lambda model, splits, number: [None] * number
    topologies.make_devices = costs.make_devices = devices
    aot.compile_step = lambda *_: report()
    benchmark.measure_run = measured
    comparison.compare = lambda entries, seeds, output: output.mkdir(parents=True) or "a page"
