"""The results of a benchmark as tables, JSON and pictures, and several of them side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from nvae_jax.errors import ConfigError
from nvae_jax.measuring.results import aligned, new_figure, save_figure
from nvae_jax.measuring.roofline import Machine, share
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
    """All of it as plain values, with every repeat, and the figures that follow from them."""
    fields = dataclasses.asdict(benchmark)
    for row, values in zip(benchmark.rows, fields["rows"], strict=True):
        values["median"] = row.median
        values["rate"] = row.rate
        values["share"] = dataclasses.asdict(share(benchmark.machine, row))
    return fields


def from_plain(values: dict[str, Any]) -> Benchmark:
    """The benchmark that `to_plain` described; anything else raises the errors of `read_json`."""
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
        cells += [[row.name, *(f(row, machine) for f in _COLUMNS.values())] for row in rows]
        used = [i for i in range(len(cells[0])) if any(line[i] for line in cells[1:])]
        lines += ["", *aligned([[line[i] for i in used] for line in cells])]
    return "\n".join([*lines, *_loading_share(benchmark.rows)])


def _loading_share(rows: Sequence[Row]) -> list[str]:
    medians = {(row.what, row.name): row.median for row in rows}
    if not {("train", "step"), ("load", "batch")} <= set(medians):
        return []
    part = medians["load", "batch"] / medians["train", "step"]
    return ["", f"reading a batch takes {part:.1%} of the time of a step, and overlaps with it"]


def _optional(value: float | None, form: str = "{:.4g}") -> str:
    return "" if value is None else form.format(value)


def _scaled(get: Callable[[Row], float | None], unit: float) -> Callable[[Row, Machine], str]:
    return lambda row, _: _optional((get(row) or 0) / unit or None)


def _reached(field: str) -> Callable[[Row, Machine], str]:
    def cell(row: Row, machine: Machine) -> str:
        value = getattr(share(machine, row), field)
        return value if isinstance(value, str) else _optional(value, "{:.1%}")

    return cell


def _rate(row: Row, _: Machine) -> str:
    return _optional(row.rate) + (" draws" if row.draws else "")


_COLUMNS: dict[str, Callable[[Row, Machine], str]] = {
    "ms": lambda row, _: f"{1e3 * row.median:.4g}",
    "from": lambda row, _: f"{1e3 * min(row.seconds):.4g}",
    "to": lambda row, _: f"{1e3 * max(row.seconds):.4g}",
    "images/s": _rate,
    "GFLOP": _scaled(lambda row: row.flops, 1e9),
    "GB": _scaled(lambda row: row.bytes, 1e9),
    "GFLOP/s": _scaled(lambda row: row.flops and row.flops / row.median, 1e9),
    "GB/s": _scaled(lambda row: row.bytes and row.bytes / row.median, 1e9),
    "of matrix": _reached("matrix"),
    "of memory": _reached("bandwidth"),
    "bound": _reached("bound"),
    "MiB": _scaled(lambda row: row.memory, 2**20),
    "peak MiB": _scaled(lambda row: row.peak, 2**20),
}


def speedups(benchmarks: Sequence[Benchmark]) -> list[tuple[str, list[Row | None], list[float]]]:
    """The measurements that several benchmarks have in common with the first.

    Returns: (name, rows, speeds) for each. A row is None where a benchmark lacks it. Speeds are
      relative to the first benchmark (NaN for None): of images where the row has images, else of
      calls.
    """
    found = []
    for first in benchmarks[0].rows:
        rows = [_find(benchmark, first.what, first.name) for benchmark in benchmarks]
        ratios = [float("nan") if row is None else _speed(row) / _speed(first) for row in rows]
        if any(row is not None for row in rows[1:]):
            found.append((f"{first.what}: {first.name}", rows, ratios))
    return found


def _find(benchmark: Benchmark, what: str, name: str) -> Row | None:
    return next((r for r in benchmark.rows if (r.what, r.name) == (what, name)), None)


def _speed(row: Row) -> float:
    return row.rate or 1 / row.median


def comparison(names: Sequence[str], benchmarks: Sequence[Benchmark]) -> str:
    """A table of milliseconds side by side, with speeds relative to the first."""
    header = [""]
    for number, name in enumerate(names):
        header += [f"{name}, ms"] + (["times as fast"] if number else [])
    cells = [header]
    for title, rows, ratios in speedups(benchmarks):
        line = [title]
        for number, (row, ratio) in enumerate(zip(rows, ratios, strict=True)):
            line += ["" if row is None else f"{1e3 * row.median:.4g}"]
            line += [_optional(None if row is None else ratio, "{:.3f}")] if number else []
        cells.append(line)
    return "\n".join(aligned(cells))


def scaling(benchmarks: Sequence[Benchmark]) -> tuple[str, dict[str, list[tuple[int, float]]]]:
    """Images per second against the number in which benchmarks differ.

    Returns: `devices` or `images in a batch`, and (number, images per second) by measurement.

    Raises:
      ConfigError: they differ in neither.
    """
    axes: dict[str, Callable[[Benchmark], int]] = {
        "devices": lambda benchmark: benchmark.environment["devices"],
        "images in a batch": lambda benchmark: benchmark.batch_size,
    }
    for axis, number in axes.items():
        if len({number(benchmark) for benchmark in benchmarks}) > 1:
            lines: dict[str, list[tuple[int, float]]] = {}
            for benchmark in sorted(benchmarks, key=number):
                for row in benchmark.rows:
                    if (row.what, row.name) in SCALED and row.rate:
                        point = (number(benchmark), row.rate)
                        lines.setdefault(row.what, []).append(point)
            return axis, lines
    raise ConfigError("a picture of scaling needs files that differ in devices or in the batch")


def draw_scaling(benchmarks: Sequence[Benchmark], path: str) -> None:
    """Draws `scaling` to the file `path`."""
    axis, lines = scaling(benchmarks)
    figure = new_figure(6, 4)
    axes = figure.subplots()
    for what, points in lines.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=what)
    axes.set(xlabel=axis, ylabel="images/s", ylim=(0, None), title=benchmarks[0].config)
    axes.legend()
    save_figure(figure, path)


def draw_benchmark(benchmark: Benchmark, path: str) -> None:
    """Draws the parts of the step, where they were measured, and the roofline to a file."""
    figure = new_figure(11, 4)
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
        style = (
            {"label": f"{row.what}: {row.name}"} if row.what != "operations" else {"color": "0.7"}
        )
        roofline.plot([x], [y], "o", markersize=5, **style)
    roofline.set(xlabel="FLOP/byte", ylabel="GFLOP/s", title="roofline of one device")
    if any(row.what != "operations" for _, _, row in points):
        roofline.legend(fontsize="small")
    figure.suptitle(f"{benchmark.config} on {benchmark.environment['device_kind']}")
    save_figure(figure, path)
