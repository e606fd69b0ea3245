"""How fast a configuration runs on this machine, and how near to what the machine can do.

Command: python -m nvae_jax.tools.benchmark --config configs/cifar_bench.py --what train,sample

`--config` is a configuration's .py file or a run's config.json; fields are set as in a run, as
`--config.training.batch_size=16`. With a .json file it takes JAX, Flax and optax alone, except for
`--what load`, `--real` and `--picture`. `--compare A.json B.json` puts results side by side. See
docs/benchmarks.md.
"""

from __future__ import annotations

from nvae_jax.memory import keep_freed_memory

if __name__ == "__main__":  # not in processes that read data
    keep_freed_memory()  # before the imports below start threads

import argparse
import ast
import datetime
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax
import jax
import optax

from nvae_jax.command_line import Parser, door
from nvae_jax.compilation import keep_compiled_programs, usable_cores
from nvae_jax.config.run import read_run
from nvae_jax.config.training import TrainingConfig
from nvae_jax.errors import ConfigError, reading, require, writing
from nvae_jax.measuring import step_split, workloads
from nvae_jax.measuring.benchmark_report import (
    Benchmark,
    comparison,
    draw_benchmark,
    draw_scaling,
    from_json,
    scaling,
    table,
    to_json,
)
from nvae_jax.measuring.operations import measure_operations
from nvae_jax.measuring.roofline import measure_machine
from nvae_jax.measuring.timing import Row
from nvae_jax.parallel import make_mesh

# In the order in which they are measured: the peak of the memory in use is the update's.
WHAT = ("train", "sample", "evaluate", "compile", "load", "operations")
SECTIONS = ("model", "data", "loading", "training")
OVERRIDE = "--config."


def read_settings(path: str) -> dict[str, Any]:
    """The configuration in a .py or .json file, as plain values.

    Raises: ConfigError if there is no such file, or it holds no configuration.
    """
    if not os.path.isfile(path):
        raise ConfigError(f"--config is {path!r}; there is no such file")
    if path.endswith(".py"):
        spec: Any = importlib.util.spec_from_file_location("benchmarked_config", path)
        module = importlib.util.module_from_spec(spec)
        # A configuration file is a program of the user's, which raises all kinds of exceptions.
        with reading("--config", path, "a configuration that loads", Exception):
            spec.loader.exec_module(module)
            settings = module.get_config().to_dict()
    else:
        with open(path) as file:
            try:
                settings = json.load(file)
            except ValueError as error:
                raise ConfigError(f"--config is {path!r}, which is not JSON ({error})") from error
    for name in settings:
        if name not in SECTIONS:
            raise ConfigError(f"{name} is unknown; allowed: {', '.join(SECTIONS)}")
    for name in ("model", "training"):
        if name not in settings:
            raise ConfigError(f"{path} has no section {name}")
    return settings


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """Values by dotted name from arguments `--config.section.field=value`.

    A value is JSON or a Python literal, or else a string.

    Raises: ConfigError if an argument is not of that form.
    """
    overrides = {}
    for argument in arguments:
        name, equals, text = argument.removeprefix(OVERRIDE).partition("=")
        if not (argument.startswith(OVERRIDE) and equals and name.count(".") == 1):
            raise ConfigError(f"{argument!r} is unknown; allowed: {OVERRIDE}section.field=value")
        overrides[name] = _value(text)
    return overrides


def _value(text: str) -> Any:
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError):
            continue
    return text


def with_overrides(settings: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """The settings with other values of some fields.

    Raises: ConfigError if there is no such section; unknown fields are found by what reads them.
    """
    changed = {section: dict(fields) for section, fields in settings.items()}
    for name, value in overrides.items():
        section, field = name.split(".")
        if section not in SECTIONS:
            raise ConfigError(f"{section} is unknown; allowed: {', '.join(SECTIONS)}")
        changed.setdefault(section, {})[field] = value
    return changed


class Data(NamedTuple):
    """The configuration's dataset and how it is read."""

    dataset: Any
    loading: Any


def real_batch(data: Data, training: TrainingConfig) -> Any:
    """The first batch of a run."""
    from nvae_jax.data.loader import train_batches

    batches = train_batches(data.dataset, training.batch_size, training.seed, loading=data.loading)
    batch = next(batches)
    batches.close()
    return batch


def environment(devices: Sequence[Any]) -> dict[str, Any]:
    """Where and with what something is measured."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "platform": devices[0].platform,
        "device_kind": devices[0].device_kind,
        "devices": len(devices),
        "cores": usable_cores(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
    }


def run(options: argparse.Namespace, overrides: dict[str, Any]) -> Benchmark:
    """Measures what the options say.

    Raises: ConfigError, before anything is compiled, if they are impossible.
    """
    wanted = options.what.split(",")
    for what in wanted:
        if what not in WHAT:
            raise ConfigError(f"--what has {what!r}; allowed: {', '.join(WHAT)}")
    devices = jax.devices()[: options.devices]
    if options.devices and options.devices > len(devices):
        raise ConfigError(f"--devices is {options.devices}; allowed: 1 to {len(devices)}")
    if options.device_batch:
        overrides = overrides | {"training.batch_size": options.device_batch * len(devices)}
    settings = with_overrides(read_settings(options.config), overrides)
    real = options.real or "load" in wanted
    if "data" not in settings:
        require("--real or --what load", real, not real, "with a configuration that has data")
        # Images of random bytes are those of the model.
        binarize = settings["model"].get("likelihood") == "bernoulli"
        border = settings["model"].get("border", 0)
        data_section = {"name": "numpy_arrays", "path": "", "binarize": binarize, "border": border}
        settings = settings | {"data": data_section}
    described = read_run(settings)
    model, training = described.model, described.training
    mesh = make_mesh(devices, training.parameter_shards)
    data = Data(described.open_data(), described.loading) if real else None
    batch = real_batch(data, training) if data and options.real else None
    work = workloads.Workload(model, training, mesh, options.repeats, batch)
    images, repeats = training.batch_size, options.repeats
    measurements = {
        "train": lambda: step_split.train(work),
        "sample": lambda: workloads.sample(work, options.num_images or images),
        "evaluate": lambda: workloads.evaluate(work),
        "compile": lambda: workloads.compilation(work),
        "operations": lambda: measure_operations(model, images // mesh.size, repeats),
    }
    if data:
        measurements["load"] = lambda: workloads.load(*data, images, training.seed, repeats)
    rows: list[Row] = []
    for what in WHAT:
        if what in wanted:
            print(f"measuring: {what}", file=sys.stderr, flush=True)
            rows += measurements[what]()
    # Last, because its arrays would count in the peak of the memory in use.
    machine = measure_machine(model.dtype, repeats)
    name = os.path.basename(options.config)
    return Benchmark(environment(devices), name, overrides, settings, machine, rows)


def compare(paths: Sequence[str], picture: str | None) -> str:
    """The comparison of results in files, and its picture.

    Raises: ConfigError if a file is not there, is no result, or the picture would show nothing.
    """
    benchmarks = []
    for path in paths:
        if not os.path.isfile(path):
            raise ConfigError(f"--compare has {path!r}; there is no such file")
        with open(path) as file:
            try:
                benchmarks.append(from_json(file.read()))
            except ValueError as error:
                raise ConfigError(f"--compare has {path!r}: {error}") from error
    if picture:
        scaling(benchmarks)
        draw_scaling(benchmarks, picture)
    return comparison([os.path.basename(path) for path in paths], benchmarks)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}; allowed: 1 or more")
    return number


def make_parser() -> argparse.ArgumentParser:
    """The options, but those that start with `--config.`."""
    parser = Parser(prog="benchmark", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--config", help="a configuration, .py or .json")
    parser.add_argument("--what", default="train,sample", help=f"some of: {', '.join(WHAT)}")
    parser.add_argument("--repeats", type=_positive, default=5, help="measurements of each")
    parser.add_argument("--num_images", type=_positive, help="that are sampled at a time")
    parser.add_argument("--devices", type=_positive, help="how many to use; all by default")
    parser.add_argument("--device_batch", type=_positive, help="images of each device")
    parser.add_argument("--real", action="store_true", help="a batch of the data, not noise")
    parser.add_argument("--json", help="file for everything that was measured")
    parser.add_argument("--picture", help="PNG file for the split of the step and the roofline")
    parser.add_argument("--write_config", help="only write the configuration, to this .json file")
    parser.add_argument("--compare", nargs="+", metavar="JSON", help="only compare such files")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Does what the command line says."""
    parser = make_parser()
    options, rest = parser.parse_known_args(argv)
    with door():
        overrides = parse_overrides(rest)
        if (options.config is None) == (options.compare is None):
            raise ConfigError("one of --config and --compare is needed")
        for path in (options.json, options.picture, options.write_config):
            if path and not os.path.isdir(os.path.dirname(os.path.abspath(path))):
                raise ConfigError(f"{path!r} is in a folder that is not there")
        if options.picture and importlib.util.find_spec("matplotlib") is None:
            raise ConfigError("--picture needs matplotlib")
        if options.compare:
            print(compare(options.compare, options.picture))
            return
        if options.write_config:
            settings = with_overrides(read_settings(options.config), overrides)
            settings = read_run(settings).to_dict()
            _write(options.write_config, json.dumps(settings, indent=2) + "\n")
            return
        keep_compiled_programs()
        benchmark = run(options, overrides)
        print(table(benchmark))
        if options.json:
            _write(options.json, to_json(benchmark))
        if options.picture:
            draw_benchmark(benchmark, options.picture)


def _write(path: str, text: str) -> None:
    """Writes a file that is there whole or not at all."""
    with writing(path):
        with open(path + ".part", "w") as file:
            file.write(text)
        os.replace(path + ".part", path)


if __name__ == "__main__":
    main()
