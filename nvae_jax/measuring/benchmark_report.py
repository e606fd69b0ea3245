"""The results of a benchmark as tables, JSON and pictures, and several of them side by side."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from nvae_jax.errors import ConfigError
from nvae_jax.measuring.results import aligned, drawing
from nvae_jax.measuring.roofline import Machine, Share, share
from nvae_jax.measuring.timing import Row

SCALED = {("train", "step"), ("evaluate", "NELBO")}  # the rows in the picture of scaling


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One run of the benchmark.

    Attributes:
      environment: platform, device, devices, versions and date, plain values.
      config: the name of the configuration's file.
      overrides: fields that were set on the command line, by dotted name.
      settings: the whole configuration, plain values.
      machine: the measured limits of one device.
      rows: the measurements.
    """

    environment: dict[str, Any]
    config: str
    overrides: dict[str, Any]
    settings: dict[str, Any]
    machine: Machine
    rows: Sequence[Row]

    @property
    def batch_size(self) -> int:
        """Images per update, over all devices."""
        return self.settings["training"]["batch_size"]


def to_plain(benchmark: Benchmark) -> dict[str, Any]:
    """A benchmark as plain values: every repeat, and the figures that follow from them."""
    fields = dataclasses.asdict(benchmark)
    for row, values in zip(benchmark.rows, fields["rows"], strict=True):
        values["median"] = row.median
        values["rate"] = row.rate
        values["share"] = dataclasses.asdict(share(benchmark.machine, row))
    return fields


def from_plain(values: dict[str, Any]) -> Benchmark:
    """The benchmark in what `to_plain` returned; other values raise errors as `read_json` says."""
    fields = dict(values)
    known = {field.name for field in dataclasses.fields(Row)}
    rows = [Row(**{k: v for k, v in row.items() if k in known}) for row in fields.pop("rows")]
    return Benchmark(machine=Machine(**fields.pop("machine")), rows=rows, **fields)


def table(benchmark: Benchmark) -> str:
    """A table for the terminal; empty columns are left out."""
    machine = benchmark.machine
    lines = [
        ", ".join(f"{name} {value}" for name, value in benchmark.environment.items()),
        f"{benchmark.config}, {benchmark.batch_size} images, "
        f"{benchmark.settings['model'].get('dtype', 'float32')}"
        + "".join(f", {name}={value}" for name, value in benchmark.overrides.items()),
        f"matrix rate {machine.matrix_rate / 1e9:,.0f} GFLOP/s, memory "
        f"{machine.bandwidth / 1e9:,.1f} GB/s, an empty call {1e6 * machine.call:.1f} µs",
    ]
    for what in dict.fromkeys(row.what for row in benchmark.rows):
        rows = [row for row in benchmark.rows if row.what == what]
        cells = [[what, *_COLUMNS]]
        for row in rows:
            reached = share(machine, row)
            figures = (_text(form, get(row, reached)) for get, form in _COLUMNS.values())
            cells.append([row.name, *figures])
        used = [column for column in zip(*cells, strict=True) if any(column[1:])]
        lines += ["", *aligned([*zip(*used, strict=True)])]
    medians = {(row.what, row.name): row.median for row in benchmark.rows}
    if {("train", "step"), ("load", "batch")} <= set(medians):
        part = medians["load", "batch"] / medians["train", "step"]
        text = f"reading a batch takes {part:.1%} of the time of a step, and overlaps with it"
        lines += ["", text]
    return "\n".join(lines)


# By title: the figure, from a row and its share of the limits, and its format.
_COLUMNS: dict[str, tuple[Callable[[Row, Share], Any], str]] = {
    "ms": (lambda row, _: 1e3 * row.median, "{:.4g}"),
    "from": (lambda row, _: 1e3 * min(row.seconds), "{:.4g}"),
    "to": (lambda row, _: 1e3 * max(row.seconds), "{:.4g}"),
    "images/s": (lambda row, _: _text("{:.4g}", row.rate) + " draws" * bool(row.draws), "{}"),
    "GFLOP": (lambda row, _: _ratio(row.flops, 1e9), "{:.4g}"),
    "GB": (lambda row, _: _ratio(row.bytes, 1e9), "{:.4g}"),
    "GFLOP/s": (lambda row, _: _ratio(row.flops, 1e9 * row.median), "{:.4g}"),
    "GB/s": (lambda row, _: _ratio(row.bytes, 1e9 * row.median), "{:.4g}"),
    "of matrix": (lambda _, reached: reached.matrix, "{:.1%}"),
    "of memory": (lambda _, reached: reached.bandwidth, "{:.1%}"),
    "bound": (lambda _, reached: reached.bound, "{}"),
    "MiB": (lambda row, _: _ratio(row.memory, 2**20), "{:.4g}"),
    "peak MiB": (lambda row, _: _ratio(row.peak, 2**20), "{:.4g}"),
}


def _text(form: str, value: Any) -> str:
    return "" if value is None else form.format(value)


def _ratio(value: float | None, unit: float) -> float | None:
    """A count in a unit; None where nothing was counted."""
    return value / unit if value else None


def speedups(benchmarks: Sequence[Benchmark]) -> list[tuple[str, list[Row | None], list[float]]]:
    """The measurements that several benchmarks have in common with the first.

    Returns: (name, rows, speeds) for each. A row is None where a benchmark lacks it. Speeds are
      relative to the first benchmark (NaN for None): of images where the row has images, else of
      calls.
    """
    found = []
    by_name = [{(row.what, row.name): row for row in one.rows} for one in benchmarks]
    for (what, name), first in by_name[0].items():
        rows = [one.get((what, name)) for one in by_name]
        speeds = [math.nan if row is None else row.rate or 1 / row.median for row in rows]
        if any(rows[1:]):
            base = first.rate or 1 / first.median
            found.append((f"{what}: {name}", rows, [speed / base for speed in speeds]))
    return found


def comparison(names: Sequence[str], benchmarks: Sequence[Benchmark]) -> str:
    """A table of milliseconds side by side, with speeds relative to the first."""
    titles = [title for name in names for title in (f"{name}, ms", "times as fast")]
    cells = [["", titles[0], *titles[2:]]]
    for title, rows, ratios in speedups(benchmarks):
        line = []
        for row, ratio in zip(rows, ratios, strict=True):
            line += ["", ""] if row is None else [f"{1e3 * row.median:.4g}", f"{ratio:.3f}"]
        cells.append([title, line[0], *line[2:]])
    return "\n".join(aligned(cells))


def scaling(benchmarks: Sequence[Benchmark]) -> tuple[str, dict[str, list[tuple[int, float]]]]:
    """Images per second against the number in which benchmarks differ.

    Returns: `devices` or `images in a batch`, and (number, images per second) by measurement.

    Raises:
      ConfigError: they differ in neither.
    """
    for axis, number in (
        ("devices", lambda one: one.environment["devices"]),
        ("images in a batch", lambda one: one.batch_size),
    ):
        if len(set(map(number, benchmarks))) > 1:
            lines: dict[str, list[tuple[int, float]]] = {}
            for one in sorted(benchmarks, key=number):
                for row in one.rows:
                    if (row.what, row.name) in SCALED and row.rate:
                        lines.setdefault(row.what, []).append((number(one), row.rate))
            return axis, lines
    raise ConfigError("a picture of scaling needs files that differ in devices or in the batch")


def draw_scaling(benchmarks: Sequence[Benchmark], path: str) -> None:
    """Draws `scaling` to the file `path`."""
    axis, lines = scaling(benchmarks)
    with drawing(path, 6, 4) as figure:
        axes = figure.subplots()
        for what, points in lines.items():
            axes.plot(*zip(*points, strict=True), marker="o", label=what)
        axes.set(xlabel=axis, ylabel="images/s", ylim=(0, None), title=benchmarks[0].config)
        axes.legend()


def draw_benchmark(benchmark: Benchmark, path: str) -> None:
    """Draws the parts of the step, where they were measured, and the roofline to a file."""
    with drawing(path, 11, 4) as figure:
        bar, roofline = figure.subplots(1, 2, width_ratios=[1, 2])
        bottom = 0.0
        for row in benchmark.rows:
            if row.what == "train" and row.name != "step":
                height = max(1e3 * row.median, 0.0)  # a step may take less than its parts
                bar.bar(["step"], [height], bottom=[bottom], label=f"{row.name} {height:.4g} ms")
                bottom += height
        if bottom:
            bar.legend(fontsize="small", loc="center right")
        bar.set(ylabel="ms", xlim=(-0.5, 2.5), title="parts of a step")
        machine = benchmark.machine
        points = [
            (row.flops / row.bytes, row.flops / row.median / 1e9, row)
            for row in benchmark.rows
            if row.flops and row.bytes
        ]
        ridge = machine.matrix_rate / machine.bandwidth
        intensities = [ridge, *(x for x, _, _ in points)]
        ends = [min(intensities) / 4, ridge, max(intensities) * 4]
        roof = [min(machine.matrix_rate, machine.bandwidth * x) / 1e9 for x in ends]
        roofline.loglog(ends, roof, color="black")
        for x, y, row in points:
            # The many operations are a cloud; their names are in the table.
            cloud = row.what == "operations"
            style = {"color": "0.7"} if cloud else {"label": f"{row.what}: {row.name}"}
            roofline.plot([x], [y], "o", markersize=5, **style)
        roofline.set(xlabel="FLOP/byte", ylabel="GFLOP/s", title="roofline of one device")
        if any(row.what != "operations" for _, _, row in points):
            roofline.legend(fontsize="small")
        figure.suptitle(f"{benchmark.config} on {benchmark.environment['device_kind']}")
