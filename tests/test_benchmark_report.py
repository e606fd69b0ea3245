import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nvae_jax.measuring.benchmark_report import (
    Benchmark,
    comparison,
    draw_benchmark,
    draw_scaling,
    from_plain,
    scaling,
    speedups,
    table,
    to_plain,
)
from nvae_jax.measuring.results import aligned, read_json, write_json
from nvae_jax.measuring.roofline import Machine
from nvae_jax.measuring.timing import Row

ROWS = [
    Row("train", "step", [0.5, 0.25, 1.0], images=16, flops=4e9, bytes=2e9, memory=2**21),
    Row("train", "forward", [0.1, 0.1, 0.3], flops=1e9, bytes=1e9),
    Row("train", "rest", [-0.1, 0.2, -0.2]),
    Row("evaluate", "NELBO", [0.125], images=16),
    Row("compile", "update", [3.0]),
    Row("load", "batch", [0.05], images=16),
]
BENCHMARK = Benchmark(
    environment={"platform": "cpu", "device_kind": "cpu", "devices": 1},
    config="digits.py",
    overrides={"training.batch_size": 16},
    settings={"model": {"dtype": "float32"}, "training": {"batch_size": 16}},
    machine=Machine(matrix_rate=16e9, bandwidth=4e9, call=1e-5),
    rows=ROWS,
)


def changed(factor, devices=1, batch_size=16, rows=ROWS):
    """The benchmark with other seconds, devices and batch."""
    rows = [
        dataclasses.replace(
            row,
            seconds=[factor * s for s in row.seconds],
            images=row.images and row.images * batch_size // 16,
        )
        for row in rows
    ]
    return dataclasses.replace(
        BENCHMARK,
        environment=BENCHMARK.environment | {"devices": devices},
        settings={"model": {}, "training": {"batch_size": batch_size}},
        rows=rows,
    )


def test_json_has_all_measurements_and_what_follows_from_them(tmp_path):
    path = str(tmp_path / "benchmark.json")
    write_json(path, to_plain(BENCHMARK))
    assert read_json("--compare", path, from_plain) == BENCHMARK
    step = json.loads(Path(path).read_text())["rows"][0]
    assert step["seconds"] == [0.5, 0.25, 1.0]
    assert (step["median"], step["rate"]) == (0.5, 32)
    assert step["share"] == {"matrix": 0.5, "bandwidth": 1.0, "bound": "memory"}


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"rows": [{}]}', '{"rows": [], "machine": {}}'])
def test_other_json_is_refused(tmp_path, text):
    (path := tmp_path / "other.json").write_text(text)
    with pytest.raises(ValueError, match=r"other.json.*; allowed: a file that --json"):
        read_json("--compare", str(path), from_plain)


def test_table_has_the_figures_and_no_empty_columns():
    lines = table(BENCHMARK).splitlines()
    header = next(line for line in lines if line.startswith("train"))
    (step,) = (line for line in lines if line.startswith("step"))
    assert header.split()[1:7] == ["ms", "from", "to", "images/s", "GFLOP", "GB"]
    assert " ".join(step.split()) == "step 500 250 1000 32 4 2 8 4 50.0% 100.0% memory 2"
    assert "compile    ms  from    to" in lines
    assert "update   3000  3000  3000" in lines
    assert lines[1] == "digits.py, 16 images, float32, training.batch_size=16"
    assert lines[-1].startswith("reading a batch takes 10.0% of the time of a step")


def test_columns_are_aligned():
    assert aligned([["a", "bb"], ["long", "c"]]) == ["a     bb", "long   c"]


def test_speedups_are_exact_and_in_images_where_there_are_any():
    slower = changed(2.0, batch_size=32)  # twice as many images in twice the time
    less = dataclasses.replace(changed(0.25), rows=changed(0.25).rows[:2])
    found = {name: ratios for name, _, ratios in speedups([BENCHMARK, slower, less])}
    np.testing.assert_equal(found["train: step"], [1.0, 1.0, 4.0])
    np.testing.assert_equal(found["train: forward"], [1.0, 0.5, 4.0])
    np.testing.assert_equal(found["compile: update"], [1.0, 0.5, float("nan")])


def test_comparison_is_a_table_side_by_side():
    lines = comparison(["a.json", "b.json"], [BENCHMARK, changed(0.5, rows=ROWS[:2])]).splitlines()
    assert lines[0].split() == ["a.json,", "ms", "b.json,", "ms", "times", "as", "fast"]
    assert lines[1].split() == ["train:", "step", "500", "250", "2.000"]
    assert len(lines) == 3


def test_scaling_is_against_what_differs(tmp_path):
    axis, lines = scaling([changed(0.5, devices=4), BENCHMARK])
    assert axis == "devices"
    assert lines == {"train": [(1, 32), (4, 64)], "evaluate": [(1, 128), (4, 256)]}
    axis, lines = scaling([BENCHMARK, changed(1.0, batch_size=32)])
    assert axis == "images in a batch"
    assert lines["train"] == [(16, 32), (32, 64)]
    with pytest.raises(ValueError, match="differ in devices or in the batch"):
        scaling([BENCHMARK, changed(0.5)])
    path = tmp_path / "scaling.png"
    draw_scaling([BENCHMARK, changed(0.5, devices=4)], str(path))
    assert np.asarray(Image.open(path)).std() > 0


def test_picture_is_drawn_with_and_without_a_step(tmp_path):
    for rows in (ROWS, ROWS[3:]):
        path = tmp_path / f"{len(rows)}.png"
        draw_benchmark(dataclasses.replace(BENCHMARK, rows=rows), str(path))
        assert np.asarray(Image.open(path)).std() > 0
