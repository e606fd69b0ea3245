"""The command, and that it runs with JAX, Flax and optax alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from xla import xla_flags

import nvae_jax.measuring.benchmark
from nvae_jax.config.overrides import parse_overrides, with_overrides
from nvae_jax.config.run import load_settings
from nvae_jax.measuring.benchmark_report import from_plain
from nvae_jax.tools import benchmark

ROOT = Path(__file__).parents[1]
TINY = {
    "model": {
        "image_shape": [4, 4, 3],
        "num_blocks": 0,
        "architecture": "res_bnswish",
        "num_latents": 2,
        "encoder_channels": 4,
        "decoder_channels": 4,
        "preprocess_cells": 1,
        "postprocess_cells": 1,
        "encoder_cells": 1,
        "decoder_cells": 1,
        "num_mixtures": 1,
    },
    "training": {"epochs": 10, "batch_size": 4},
}
# Everything else that a run needs; what is not installed is not there either.
ALONE = """
import sys
BLOCKED = set({blocked!r}.split())
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{{name}} is blocked")
sys.meta_path.insert(0, Blocker())
from nvae_jax.tools.benchmark import main
main({arguments!r})
"""
BLOCKED = """
    array_record chex clu etils grain lmdb matplotlib ml_collections orbax PIL scipy sklearn
    tensorboard tensorflow tensorflow_datasets torch tqdm
"""


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(TINY))
    return str(path)


def test_it_runs_with_jax_flax_and_optax_alone(tmp_path, tiny):
    result = tmp_path / "result.json"
    arguments = ["--config", tiny, "--config.training.batch_size=2", "--repeats=2"]
    arguments += ["--what=train,sample,evaluate,operations", "--num_images=3"]
    program = ALONE.format(blocked=BLOCKED, arguments=[*arguments, "--json", str(result)])
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ
        | {"XLA_FLAGS": xla_flags(1), "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = from_plain(json.loads(result.read_text()))
    rows = {(row.what, row.name): row for row in found.rows}
    parts = " ".join(name for what, name in rows if what == "train")
    assert parts == "step input forward backward spectral optimiser rest"
    assert found.overrides == {"training.batch_size": 2}
    assert found.environment["devices"] == 1
    step, forward = rows["train", "step"], rows["train", "forward"]
    backward, sample = rows["train", "backward"], rows["sample", "batch"]
    assert (step.images, sample.images) == (2, 3)
    assert len(step.seconds) == 2
    # The update is its parts, the backward pass costs more than the forward pass.
    assert forward.flops < backward.flops
    spectral = rows["train", "spectral"].flops
    assert step.flops == forward.flops + backward.flops + spectral
    assert step.memory > forward.memory > 0
    assert rows["evaluate", "NELBO"].flops == forward.flops
    assert len([what for what, _ in rows if what == "operations"]) == 2 * 9
    for what in ("train", "sample", "evaluate", "operations"):
        assert f"\n{what} " in done.stdout


def test_overrides_are_json_python_or_strings():
    arguments = [
        "--config.training.seed=1",
        "--config.model.dtype=bfloat16",
        "--config.model.image_shape=(8, 8, 3)",
        "--config.model.squeeze_excite=false",
        "--config.model.unroll=True",
        "--config.training.ema_decay=None",
        "--config.data.path=a=b",
    ]
    assert parse_overrides(arguments) == {
        "training.seed": 1,
        "model.dtype": "bfloat16",
        "model.image_shape": (8, 8, 3),
        "model.squeeze_excite": False,
        "model.unroll": True,
        "training.ema_decay": None,
        "data.path": "a=b",
    }


def test_settings_of_a_file_are_not_changed_by_overrides():
    changed = with_overrides(TINY, {"training.batch_size": 8, "data.name": "photos"})
    assert changed["training"] == {"epochs": 10, "batch_size": 8}
    assert changed["data"] == {"name": "photos"}
    assert TINY["training"]["batch_size"] == 4


def test_a_python_file_and_what_is_written_of_it_are_the_same(tmp_path):
    written = tmp_path / "written.json"
    source = str(ROOT / "configs" / "cifar_bench.py")
    override = "--config.training.batch_size=32"
    benchmark.main(["--config", source, override, "--write_config", str(written)])
    settings = load_settings(source)
    assert settings["model"]["num_groups"] == 6
    settings["training"]["batch_size"] = 32
    settings["model"] |= {"image_shape": [32, 32, 3], "border": 0, "likelihood": "logistic_mixture"}
    assert load_settings(str(written)) == settings


def test_results_are_compared(tmp_path, capsys):
    environment = {"devices": 1}
    for name, seconds in (("a", 0.5), ("b", 0.125)):
        row = {"what": "train", "name": "step", "seconds": [seconds], "images": 4}
        content = {
            "environment": environment,
            "config": "x.py",
            "overrides": {},
            "settings": TINY,
            "machine": {"matrix_rate": 1.0, "bandwidth": 1.0, "call": 1.0},
            "rows": [row],
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    paths = [str(tmp_path / name) for name in ("a.json", "b.json")]
    benchmark.main(["--compare", *paths])
    assert capsys.readouterr().out.splitlines()[1].split()[-3:] == ["500", "125", "4.000"]
    refused(
        ["--compare", *paths, "--picture", str(tmp_path / "x.png")], "differ in devices", capsys
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either --config or --compare is required"),
        (["--config", "TINY", "--compare", "x.json"], "either --config or --compare"),
        (["--config", "nowhere.py"], "--config is 'nowhere.py'"),
        (["--config", "README.md"], "--config is 'README.md'"),
        (["--config", "TINY", "--what", "train,trian"], "--what is 'trian'; allowed: train, "),
        (["--config", "TINY", "--repeats", "0"], "0; allowed: 1 or more"),
        (["--config", "TINY", "--devices", "9"], "--devices is 9; allowed: 1 to 8"),
        (["--config", "TINY", "--batch", "3"], "--batch"),
        (["--config", "TINY", "--config.seed=3"], "allowed: --config.section.field=value"),
        (
            ["--config", "TINY", "--config.modal.seed=3"],
            "config.modal is unknown; did you mean model? allowed: model, ",
        ),
        (["--config", "TINY", "--config.model.depth=3"], "model.depth is unknown; allowed: "),
        (["--config", "TINY", "--config.training.seed=x"], "training.seed is 'x'; allowed: int"),
        (["--config", "TINY"], "training.batch_size is 4; allowed: multiples of the number"),
        (
            ["--config", "TINY", "--json", "no/x.json"],
            "--json is 'no/x.json'; allowed: a file in a folder",
        ),
        (
            ["--config", "TINY", "--devices", "1", "--real"],
            "allowed: with a data section",
        ),
        (["--compare", "nowhere.json"], "--compare is 'nowhere.json'"),
        (["--compare", "TINY"], "allowed: a file that --json of this command has written"),
    ],
)
def test_what_is_impossible_is_refused_before_anything_is_measured(
    tiny, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(benchmark, "keep_compiled_programs", lambda: None)
    monkeypatch.setattr(nvae_jax.measuring.benchmark, "measure_machine", None)
    refused([tiny if argument == "TINY" else argument for argument in arguments], message, capsys)


def refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        benchmark.main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
