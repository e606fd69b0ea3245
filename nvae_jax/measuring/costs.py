"""What an update costs, as the compiler counts it: against any field, or on slices of any size.

The real train step is compiled once for every value of a field, or for every slice, for the batch
size of the configuration: with more chips, each has fewer images. Nothing runs; the times are the
shortest that the roofline allows at the manufacturer's figures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from nvae_jax.config.overrides import parse_value, with_overrides
from nvae_jax.config.run import RunConfig
from nvae_jax.config.training import TrainingConfig
from nvae_jax.errors import ConfigError, require
from nvae_jax.fields import from_mapping
from nvae_jax.measuring.aot import Report, search
from nvae_jax.measuring.hlo import Traffic
from nvae_jax.measuring.results import drawing, markdown, read_json
from nvae_jax.measuring.topologies import make_devices
from nvae_jax.model.families import model_config
from nvae_jax.model.vae import VAEConfig
from nvae_jax.parallel import check_batch_size, make_mesh
from nvae_jax.training.fitting import GIB

DEVICES = "chips"  # the field of cases that differ in their slice


@dataclasses.dataclass(frozen=True)
class Chip:
    """The manufacturer's figures.

    Attributes:
      matrix_rate: bfloat16 operations per second.
      bandwidth: bytes of memory per second.
      links: bytes per second that the chip sends over all links. The documentation gives the sum of
        both directions; a chip sends in one.
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
    """One compilation.

    Attributes:
      topology: the slice.
      field: what is varied.
      value: of the field.
      report: the figures.
    """

    topology: str
    field: str
    value: Any
    report: Report

    def limits(self) -> dict[str, float]:
        """The shortest time of an update in seconds, if each resource alone limited it."""
        chip = _chip(self.topology)
        # What each chip sends for a result of n parts. A sum is scattered, then gathered.
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
        """The shortest time in seconds for this number of images."""
        updates = images / (self.report.devices * self.report.batch_per_device)
        return updates * max(self.limits().values())


def _chip(topology: str) -> Chip:
    generation = topology.partition(":")[0]
    require("--topology", topology, generation in CHIPS, f"slices of {', '.join(CHIPS)}")
    return CHIPS[generation]


def parse_values(text: str) -> tuple[str, list[Any]]:
    """The field and the values of `section.field=value,value`; values as in Python, or words.

    Raises:
      ConfigError: the text is not of that form.
    """
    name, equals, values = text.partition("=")
    require("--vary", text, bool(equals and values), "section.field=value,value")
    found = parse_value(f"({values},)")
    return name, list(found) if isinstance(found, tuple) else values.split(",")


def settings(
    run: RunConfig, varied: Sequence[tuple[str, list[Any]]]
) -> list[tuple[str, Any, VAEConfig, TrainingConfig]]:
    """What to compile: the run with each value of the first field, and the others' that go with it.

    Args:
      run: to start from.
      varied: fields and their values, as `parse_values` returns them; empty: the run as it is.

    Returns: (first field, its value, the two sections) for each.

    Raises:
      ConfigError: there is no such field, a value is impossible, or the numbers of values differ.
    """
    field, first = varied[0] if varied else (DEVICES, [None])
    for name, values in varied:
        known = name.startswith(("model.", "training.")) and name.count(".") == 1
        require("--vary", name, known, "fields of model, training")
        if len(values) != len(first):
            raise ConfigError(
                f"--vary has {len(values)} value(s) of {name}; allowed: {len(first)}, as of {field}"
            )
    cases = []
    for index, value in enumerate(first):
        overrides = {name: values[index] for name, values in varied}
        sections = with_overrides(run.to_dict(), overrides)
        # Not by `read_run`, which would refuse an image shape that is not the data's.
        model = model_config(sections["model"])
        training = from_mapping(TrainingConfig, sections["training"], "training")
        cases.append((field, value, model, training))
    return cases


def compile_cases(
    run: RunConfig, topologies: Sequence[str], varied: Sequence[tuple[str, list[Any]]]
) -> list[Case]:
    """Compiles what `settings` returns for each slice; all are checked before the first.

    Prints each when it is done. A case that does not fit the memory is left out.

    Raises:
      ConfigError: a slice or a setting is impossible.
    """
    fits = len(topologies) == 1 or (len(topologies) > 1 and not varied)
    require("--topology", ",".join(topologies), fits, "a slice, or several without --vary")
    planned = []
    for topology in topologies:
        _chip(topology)
        devices, limit = make_devices(topology)
        for field, value, model, training in settings(run, varied):
            shards, parts = training.parameter_shards, training.accumulation_steps
            mesh = make_mesh(devices, shards)
            allowed = "1; the time of links is counted for exchanges between all chips"
            require("training.parameter_shards", shards, shards == 1, allowed)
            check_batch_size(mesh, training.batch_size, "training.batch_size", parts)
            case = topology, field, mesh.size if field == DEVICES else value
            planned.append((case, (model, training), mesh, limit))
    cases = []
    for (topology, field, value), one, mesh, limit in planned:
        print(f"{topology}, {field} {value}", flush=True)
        reports, fits = search([one], mesh, limit, run.objective)
        cases += [Case(topology, field, value, report) for report in reports if fits]
    return cases


def read_cases(paths: Sequence[str]) -> list[Case]:
    """The cases in files that `--json` wrote.

    Raises:
      ConfigError: a file cannot be read, or holds something else.
    """

    def build(values: Any) -> list[Case]:
        return [Case(**one | {"report": _report(**one["report"])}) for one in values]

    return [case for path in paths for case in read_json("the file of figures", path, build)]


def _report(traffic: dict[str, Any], **figures: Any) -> Report:
    return Report(traffic=Traffic(**traffic), **figures)


def tables(cases: Sequence[Case], images: int | None) -> str:
    """A table in Markdown for each varied field; figures are per update and chip.

    Args:
      cases: what to show.
      images: of an epoch, whose cost is shown too; None: it is not.
    """
    lines = []
    for group in _by_field(cases):
        lines += [*markdown([_cells(case, images) for case in group]), ""]
    return "\n".join(lines)


def _cells(case: Case, images: int | None) -> dict[str, str]:
    """A row of a table by its columns."""
    report, traffic = case.report, case.report.traffic
    cells = {
        case.field: str(case.value),
        "slice": case.topology,
        "images per chip": str(report.batch_per_device),
        "TFLOP": f"{report.flops / 1e12:.3g}",
        "GB": f"{traffic.bytes / 1e9:.4g}",
        "collectives": str(sum(traffic.collectives.values())),
        "MB moved": f"{sum(traffic.collective_bytes.values()) / 1e6:.4g}",
        "temporaries, GiB": f"{report.temporaries / GIB:.2f}",
        "all together, GiB": f"{report.peak / GIB:.2f}",
        "compiled in, s": f"{report.seconds:.0f}",
    }
    cells |= {f"{name}, ms": f"{1e3 * seconds:.1f}" for name, seconds in case.limits().items()}
    if images is not None:
        seconds = case.epoch(images)
        cells["s per epoch"] = f"{seconds:.3g}"
        cells["chip-hours per epoch"] = f"{seconds * report.devices / 3600:.3g}"
    return cells


def _by_field(cases: Sequence[Case]) -> list[list[Case]]:
    """The cases in groups of one field, in the order in which the fields come first."""
    fields = list(dict.fromkeys(case.field for case in cases))
    return [[case for case in cases if case.field == field] for field in fields]


def draw_costs(cases: Sequence[Case], path: str) -> None:
    """Draws the shortest times and the memory against each varied field, to the file `path`."""
    groups = _by_field(cases)
    with drawing(path, 2.8 * len(groups) + 2, 6) as figure:
        panels = figure.subplots(2, len(groups), sharey="row", sharex="col", squeeze=False)
        for group, times, memory in zip(groups, *panels, strict=True):
            # The first side stands for a shape.
            values = [c.value[0] if isinstance(c.value, list | tuple) else c.value for c in group]
            numbers = all(type(value) in (int, float) and value > 0 for value in values)
            values = values if numbers else list(map(str, values))
            for name in group[0].limits():
                times.plot(values, [1e3 * c.limits()[name] for c in group], marker="o", label=name)
            for name in ("peak", "temporaries", "arguments"):
                sizes = [getattr(case.report, name) / GIB for case in group]
                label = "all together" if name == "peak" else name
                memory.plot(values, sizes, marker="o", label=label)
            slices = {case.topology for case in group}
            title = slices.pop() if len(slices) == 1 else group[0].topology.partition(":")[0]
            times.set(yscale="log", title=title)
            times.yaxis.set_major_formatter("{x:g}")
            memory.set(xlabel=group[0].field)
            if numbers:
                memory.set(xscale="log")
                memory.set_xticks(values, map(str, values))
                memory.set_xticks([], minor=True)
        labels = ("shortest ms per update", "GiB per chip")
        for axes, label in zip(panels[:, 0], labels, strict=True):
            axes.set(ylabel=label)
            axes.legend(fontsize="small")
        panels[1, 0].set_ylim(0)  # of all panels; set earlier, it would keep the range of the first
