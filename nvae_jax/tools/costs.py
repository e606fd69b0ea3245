"""What an update costs, by the compiler's count: against any field, or on slices of several sizes.

Compile: python -m nvae_jax.tools.costs --config configs/cifar10.py --topology v5e:2x4
           --vary model.num_groups=8,15,30 --json groups.json
Show:    python -m nvae_jax.tools.costs groups.json devices.json --picture costs.png

The real train step is compiled, as in `tools.aot`, once for every value of `--vary` or every slice
of `--topology`, for the batch that the configuration names: on more chips each has less of it. A
second `--vary` changes along with the first one. Nothing runs: times are what the roofline allows
at best, from the makers' figures.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from nvae_jax.command_line import door, parse_flags
from nvae_jax.config.run import read_run
from nvae_jax.config.training import TrainingConfig
from nvae_jax.errors import ConfigError, writing
from nvae_jax.fields import from_mapping
from nvae_jax.measuring.hlo import Traffic
from nvae_jax.model.architecture import ModelConfig
from nvae_jax.parallel import check_batch_size, make_mesh
from nvae_jax.tools.aot import GIB, Report, make_devices, search

DEVICES = "chips"  # the axis of cases that differ in their slice


@dataclasses.dataclass(frozen=True)
class Chip:
    """The makers' figures: bfloat16 operations, bytes of memory, bytes sent over links, a second.

    Of links the documentation has both directions together; a chip sends in one.
    """

    matrix_rate: float
    bandwidth: float
    links: float


# docs.cloud.google.com/tpu/docs/v5e, v5p and v6e.
CHIPS = {
    "v5e": Chip(197e12, 819e9, 400e9 / 2),
    "v5p": Chip(459e12, 2765e9, 1200e9 / 2),
    "v6e": Chip(918e12, 1638e9, 800e9 / 2),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One compilation: the slice, what was varied there (a field and its value), the figures."""

    topology: str
    field: str
    value: Any
    report: Report

    def limits(self) -> dict[str, float]:
        """Seconds of an update that arithmetic, memory and links take at best, each alone."""
        chip = _chip(self.topology)
        # Of a result of n parts each chip sends so much. A sum is scattered and then gathered.
        n = self.report.devices
        gathered = (n - 1) / n
        parts = {"all-reduce": 2 * gathered, "reduce-scatter": n - 1, "collective-permute": 1}
        sent = sum(
            size * parts.get(name, gathered)
            for name, size in self.report.traffic.collective_bytes.items()
        )
        return {
            "arithmetic": self.report.flops / chip.matrix_rate,
            "memory": self.report.traffic.bytes / chip.bandwidth,
            "links": sent / chip.links,
        }

    def epoch(self, images: int) -> float:
        """Seconds of so many images at best."""
        updates = images / (self.report.devices * self.report.batch_per_device)
        return updates * max(self.limits().values())


def _chip(topology: str) -> Chip:
    generation = topology.partition(":")[0]
    if generation not in CHIPS:
        raise ConfigError(f"topology is {topology!r}; allowed: slices of {', '.join(CHIPS)}")
    return CHIPS[generation]


def parse_values(text: str) -> tuple[str, list[Any]]:
    """The field and the values of `section.field=value,value`; values as in Python, or words.

    Raises: ValueError if it is something else.
    """
    name, equals, values = text.partition("=")
    if not (equals and values):
        raise ConfigError(f"vary is {text!r}; allowed: section.field=value,value")
    try:
        return name, list(ast.literal_eval(f"({values},)"))
    except (SyntaxError, ValueError):
        return name, values.split(",")


def settings(
    config: Any, varied: Sequence[tuple[str, list[Any]]]
) -> list[tuple[str, Any, ModelConfig, TrainingConfig]]:
    """What to compile: for each value of the first varied field, all that changes with it.

    Args:
      config: a configuration with `model` and `training`.
      varied: as `parse_values` gives them; none: the configuration as it is.

    Returns: (first field, its value, the two sections) for each.

    Raises: ValueError for fields there are not, impossible values, or numbers of them that differ.
    """
    field, first = varied[0] if varied else (DEVICES, [None])
    cases = []
    described = read_run(config).to_dict()
    for name, values in varied:
        if len(values) != len(first):
            raise ConfigError(
                f"vary has {len(values)} value(s) of {name}; allowed: {len(first)}, as of {field}"
            )
    for index, value in enumerate(first):
        sections = {name: dict(described[name]) for name in ("model", "training")}
        for name, values in varied:
            section, _, key = name.partition(".")
            if section not in sections:
                raise ConfigError(f"vary names {name}; allowed: fields of {', '.join(sections)}")
            sections[section][key] = values[index]
        # Not by `read_run`: no image is looked at, and shapes may be other ones than the data's.
        model = from_mapping(ModelConfig, sections["model"], "model")
        training = from_mapping(TrainingConfig, sections["training"], "training")
        cases.append((field, value, model, training))
    return cases


def compile_cases(
    config: Any, topologies: Sequence[str], varied: Sequence[tuple[str, list[Any]]]
) -> list[Case]:
    """Compiles what `settings` says for each slice; all are checked before the first.

    Prints each as it is done, or that it does not fit the memory; then it is left out.
    """
    if not topologies or (varied and len(topologies) > 1):
        raise ConfigError(
            f"topology is {','.join(topologies)!r}; allowed: a slice, or several without vary"
        )
    planned = []
    for topology in topologies:
        _chip(topology)
        devices, limit = make_devices(topology)
        for field, value, model, training in settings(config, varied):
            mesh = make_mesh(devices, training.parameter_shards)
            if training.parameter_shards > 1:
                raise ConfigError(
                    f"training.parameter_shards is {training.parameter_shards}; allowed: 1, since "
                    "what links take is counted for exchanges of all chips"
                )
            parts = training.accumulation_steps
            check_batch_size(mesh, training.batch_size, "training.batch_size", parts)
            value = mesh.size if field == DEVICES else value
            planned.append((topology, field, value, (model, training), mesh, limit))
    cases = []
    for topology, field, value, one, mesh, limit in planned:
        print(f"{topology}, {field} {value}", flush=True)
        reports, fits = search([one], mesh, limit)
        cases += [Case(topology, field, value, report) for report in reports if fits]
    return cases


def read_cases(paths: Sequence[str]) -> list[Case]:
    """The cases of files that `--json` wrote.

    Raises: ValueError naming a file that is something else.
    """
    cases = []
    for path in paths:
        try:
            with open(path) as file:
                for fields in json.load(file):
                    report = fields.pop("report")
                    report["traffic"] = Traffic(**report["traffic"])
                    cases.append(Case(**fields, report=Report(**report)))
        except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
            raise ConfigError(f"{path} is not what --json writes ({error})") from error
    return cases


def tables(cases: Sequence[Case], images: int | None) -> str:
    """Markdown, a table for each varied field; per update and chip, and per epoch of `images`."""
    lines = []
    for field, group in _by_field(cases).items():
        header = [field, "slice", "images a chip", "TFLOP", "GB", "collectives", "MB moved"]
        header += ["temporaries, GiB", "all together, GiB", "compiled in, s"]
        header += [f"{name}, ms" for name in group[0].limits()]
        if images is not None:
            header += ["s an epoch", "chip-hours an epoch"]
        rows = [header, ["---"] * len(header)]
        for case in group:
            report, traffic = case.report, case.report.traffic
            row = [f"{case.value}", case.topology, f"{report.batch_per_device}"]
            row += [f"{report.flops / 1e12:.3g}", f"{traffic.bytes / 1e9:.4g}"]
            row += [f"{sum(traffic.collectives.values())}"]
            row += [f"{sum(traffic.collective_bytes.values()) / 1e6:.4g}"]
            row += [f"{report.temporaries / GIB:.2f}", f"{report.peak / GIB:.2f}"]
            row += [f"{report.seconds:.0f}"]
            row += [f"{1e3 * seconds:.1f}" for seconds in case.limits().values()]
            if images is not None:
                seconds = case.epoch(images)
                row += [f"{seconds:.3g}", f"{seconds * report.devices / 3600:.3g}"]
            rows.append(row)
        lines += [*(f"| {' | '.join(row)} |" for row in rows), ""]
    return "\n".join(lines)


def _by_field(cases: Sequence[Case]) -> dict[str, list[Case]]:
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.field, []).append(case)
    return groups


def draw_costs(cases: Sequence[Case], path: str) -> None:
    """Writes the times at best and the memory against each varied field to the file `path`."""
    import matplotlib.figure

    groups = _by_field(cases)
    figure = matplotlib.figure.Figure(figsize=(2.8 * len(groups) + 2, 6), layout="constrained")
    panels = figure.subplots(2, len(groups), sharey="row", sharex="col", squeeze=False)
    for (field, group), times, memory in zip(groups.items(), *panels, strict=True):
        # Of a shape, its first side.
        values = [c.value[0] if isinstance(c.value, list | tuple) else c.value for c in group]
        numbers = all(type(value) in (int, float) and value > 0 for value in values)
        values = values if numbers else list(map(str, values))
        for name in group[0].limits():
            times.plot(values, [1e3 * c.limits()[name] for c in group], marker="o", label=name)
        for name in ("peak", "temporaries", "arguments"):
            sizes = [getattr(case.report, name) / GIB for case in group]
            memory.plot(values, sizes, marker="o", label="all together" * (name == "peak") or name)
        slices = {case.topology for case in group}
        title = slices.pop() if len(slices) == 1 else group[0].topology.partition(":")[0]
        times.set(yscale="log", title=title)
        times.yaxis.set_major_formatter("{x:g}")
        memory.set(xlabel=field)
        if numbers:
            memory.set(xscale="log")
            memory.set_xticks(values, map(str, values))
            memory.set_xticks([], minor=True)
    for axes, label in zip(panels[:, 0], ("ms an update at best", "GiB a chip"), strict=True):
        axes.set(ylabel=label)
        axes.legend(fontsize="small")
    panels[1, 0].set_ylim(0)  # of all panels; earlier it would hold the first one's range
    figure.savefig(path, dpi=110)


def main(argv: list[str]) -> None:
    """Compiles what the flags say, or reads the files, and shows it."""
    logging.set_verbosity(logging.ERROR)
    options = flags.FLAGS
    with door():
        if (options.config is None) == (not argv[1:]):
            raise ConfigError(
                "either --config and --topology, or files of earlier figures, are needed"
            )
        if options.config is None:
            cases = read_cases(argv[1:])
        else:
            varied = [parse_values(text) for text in options.vary]
            cases = compile_cases(options.config, options.topology, varied)
        if not cases:
            raise ConfigError("there is nothing to show")
        if options.json:
            with writing(options.json), open(options.json, "w") as file:
                json.dump([dataclasses.asdict(case) for case in cases], file, indent=2)
        print(tables(cases, options.images))
        if options.picture:
            with writing(options.picture):
                draw_costs(cases, options.picture)


def define_flags() -> None:
    """Defines the flags of the command line."""
    config_flags.DEFINE_config_file("config", None, "What to compile.", lock_config=True)
    flags.DEFINE_list("topology", [], "TPU slices such as v5e:2x4,v5e:4x4.")
    flags.DEFINE_multi_string("vary", [], "section.field=value,value; several change together.")
    flags.DEFINE_integer("images", None, "Images of an epoch, to say what one costs.")
    flags.DEFINE_string("json", None, "File for the figures.")
    flags.DEFINE_string("picture", None, "File for the picture.")


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=functools.partial(parse_flags, positional=True))
