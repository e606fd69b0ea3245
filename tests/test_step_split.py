import pytest

from nvae_jax.measuring.step_split import split

SECONDS = {
    "step": [10.0, 12.0],
    "input": [0.5, 0.25],
    "forward": [2.0, 3.0],
    "gradient": [5.0, 7.0],
    "spectral": [1.0, 1.5],
    "optimiser": [2.0, 4.0],
}


def test_parts_make_up_the_step_in_every_repeat():
    parts = split(SECONDS)
    assert list(parts) == ["input", "forward", "backward", "spectral", "optimiser", "rest"]
    assert parts["backward"] == [3.0, 4.0]
    assert parts["rest"] == [1.5, -0.75]
    for repeat, step in enumerate(SECONDS["step"]):
        assert sum(values[repeat] for values in parts.values()) == pytest.approx(step)


def test_a_part_that_was_not_measured_is_an_error():
    with pytest.raises(KeyError, match="spectral"):
        split({name: values for name, values in SECONDS.items() if name != "spectral"})
