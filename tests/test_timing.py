import time

import pytest

from nvae_jax.measuring import timing
from nvae_jax.measuring.timing import Row, measure


def test_median_and_rate_of_a_row():
    row = Row("sample", "batch", [0.5, 0.1, 0.2, 4.0], images=7)
    assert row.median == 0.35
    assert row.rate == 20
    assert Row("evaluate", "weights", [0.5], images=7, draws=3).rate == 42
    assert Row("train", "input", [0.5]).rate is None


def test_functions_take_turns_and_seconds_are_of_one_call(monkeypatch):
    clock = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: clock)
    order = []

    def work(name, seconds):
        def call():
            nonlocal clock
            order.append(name)
            clock += seconds

        return call

    seconds = measure({"a": work("a", 0.5), "b": work("b", 0.25)}, repeats=3, at_least=0.75)
    assert seconds == {"a": [0.5] * 3, "b": [0.25] * 3}
    # Warm-up, one call that says how many a measurement takes, and then in turns.
    warm_up = timing.WARM_UP + 1
    assert order[: 2 * warm_up] == ["a"] * warm_up + ["b"] * warm_up
    # Each turn begins with a call that does not count.
    assert order[2 * warm_up :] == (["a"] * 3 + ["b"] * 5) * 3


def test_repeats_are_kept_one_by_one(monkeypatch):
    ends = iter([9.0, 9.0, 3.0, 9.0, 4.0, 9.0, 8.0])  # 4 and 8 count
    clock = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: clock)

    def call():
        nonlocal clock
        clock += next(ends)

    assert measure({"x": call}, repeats=2, at_least=0.0)["x"] == pytest.approx([4.0, 8.0])
