"""What a benchmark measured, as tables, JSON and pictures, and several of them side by side."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

from nvae_jax.errors import ConfigError
from nvae_jax.measuring.roofline import Machine, share
from nvae_jax.measuring.timing import Row

SCALED = {("train", "step"), ("evaluate", "NELBO")}  # what the picture of scaling shows


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One run of the benchmark.

    Attributes:
      environment: platform, device, devices, versions and date, plain values.
      config: the name of the configuration.
      overrides: fields that were set on the command line, by dotted name.
      settings: the whole configuration, plain values.
      machine: the measured limits of one device.
      rows: what was measured.
    """

    environment: dict[str, Any]
    config: str
    overrides: dict[str, Any]
    settings: dict[str, Any]
    machine: Machine
    rows: Sequence[Row]

    @property
    def batch_size(self) -> int:
        """Images in an update, over all devices."""
        return self.settings["training"]["batch_size"]


def to_json(benchmark: Benchmark) -> str:
    """All of it, with every repeat, and what follows from it for whoever reads it elsewhere."""
    fields = dataclasses.asdict(benchmark)
    for row, values in zip(benchmark.rows, fields["rows"], strict=True):
        values["median"] = row.median
        values["rate"] = row.rate
        values["share"] = dataclasses.asdict(share(benchmark.machine, row))
    return json.dumps(fields, indent=2) + "\n"


def from_json(text: str) -> Benchmark:
    """The benchmark that `to_json` wrote.

    Raises: ValueError if the text is something else.
    """
    try:
        fields = json.loads(text)
        known = {field.name for field in dataclasses.fields(Row)}
        rows = [Row(**{k: v for k, v in row.items() if k in known}) for row in fields.pop("rows")]
        return Benchmark(machine=Machine(**fields.pop("machine")), rows=rows, **fields)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"it is not what --json of the benchmark writes ({error})") from error


def table(benchmark: Benchmark) -> str:
    """Everything for the terminal; columns that say nothing are left out."""
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
    return ["", f"reading a batch takes {part:.1%} of the time of a step, and is done beside it"]


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in cells
    ]


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
    """What several benchmarks measured in common with the first.

    Returns: by name, the rows, None where a benchmark lacks it, and how many times as fast as the
      first each is (NaN for those): in images a second where the row has images, else in runs.
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
    """Milliseconds side by side, and how many times as fast as the first the others are."""
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
    """Images a second against the number in which benchmarks differ.

    Returns: `devices` or `images in a batch`, and (number, images a second) by what was measured.

    Raises: ValueError if they differ in neither.
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
    """Writes the picture of `scaling` to the file `path`."""
    import matplotlib.figure

    axis, lines = scaling(benchmarks)
    figure = matplotlib.figure.Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for what, points in lines.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=what)
    axes.set(xlabel=axis, ylabel="images/s", ylim=(0, None), title=benchmarks[0].config)
    axes.legend()
    figure.savefig(path, dpi=110)


def draw_benchmark(benchmark: Benchmark, path: str) -> None:
    """Writes the split of the step, where there is one, and the roofline to the file `path`."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(11, 4), layout="constrained")
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
    figure.savefig(path, dpi=110)
