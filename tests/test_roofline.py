import pytest

from nvae_jax.measuring import roofline
from nvae_jax.measuring.roofline import Machine, Share, measure_bandwidth, share
from nvae_jax.measuring.timing import Row

MACHINE = Machine(matrix_rate=100.0, bandwidth=10.0, call=1e-6)


@pytest.mark.parametrize(
    ("flops", "moved", "expected"),
    [
        (100.0, 5.0, Share(0.5, 0.25, "matrix")),
        (20.0, 10.0, Share(0.1, 0.5, "memory")),
        (0.0, 10.0, Share(0.0, 0.5, "memory")),
        (20.0, None, Share(0.1, None, None)),
        (None, None, Share(None, None, None)),
    ],
)
def test_shares_of_the_limits_and_which_binds(flops, moved, expected):
    row = Row("train", "step", [9.0, 2.0, 1.0], flops=flops, bytes=moved)
    assert share(MACHINE, row) == expected


def test_machine_rates_are_of_the_work_that_was_timed(monkeypatch):
    def measured(functions, repeats):
        for function in functions.values():
            function()
        return {name: [0.25, 0.125, 0.5][:repeats] for name in functions}

    monkeypatch.setattr(roofline, "measure", measured)
    monkeypatch.setattr(roofline, "TRIAD_BYTES", 1200)
    machine = roofline.measure_machine("float32", repeats=3)
    # 0.125 s is long enough, so that the smallest matrix is the only one.
    assert machine == Machine(2 * 512**3 / 0.125, 3 * 1200 / 0.125, 0.125)


def test_bandwidth_is_measured_in_place(monkeypatch):
    results = []

    def measured(functions, repeats):
        run = functions["triad"]
        results.extend([float(run()[0]), float(run()[0])])
        return {"triad": [1.0]}

    monkeypatch.setattr(roofline, "measure", measured)
    assert measure_bandwidth(400, 1) == 1200
    assert results == [1.5, 1.75]
