"""A run that learns nothing is told from others, on numbers alone."""

import dataclasses
import math

import numpy as np
import pytest
from tiny import tiny_run

from nvae_jax.data.sources import Dataset
from nvae_jax.objectives.table import OBJECTIVES
from nvae_jax.training.guard import STRETCH
from nvae_jax.training.learning import (
    WINDOWS,
    Learning,
    NothingLearnedError,
    independent_limit,
    is_judged,
)

LATE = 500 + STRETCH


def means(value, weight=0.5):
    """Metrics of a window of which what is minimised has this value."""
    return {"reconstruction": value - 6 * weight, "kl": 6.0, "kl_weight": weight}


def watched(values, limit=30.0, past=(), step=LATE):
    """Whether, after these windows, nothing is learned."""
    learning = Learning(500, lambda: limit, map(means, past))
    try:
        for value in values:
            learning.window(step, means(value))
    except NothingLearnedError:
        return True
    return False


def test_windows_above_independent_pixels_are_nothing():
    stuck = [31.0] * WINDOWS
    assert watched(stuck)
    assert not watched(stuck[1:])
    assert watched(stuck[:1], past=stuck[1:])
    assert not watched([*stuck[1:], 29.9])
    assert not watched(stuck, step=LATE - 1)
    assert not watched(stuck, limit=math.inf)


def test_what_still_falls_may_go_on_to_the_end():
    falls = list(np.linspace(60, 50, WINDOWS))
    assert not watched(falls)
    learning = Learning(500, lambda: 30.0, map(means, falls))
    learning.end(LATE - 1)
    with pytest.raises(NothingLearnedError, match=r"is 50\.0 nats .* above the 30\.0 of indep"):
        learning.end(LATE)


def test_the_limit_is_that_of_independent_pixels_and_a_twentieth_of_uniform_ones():
    run = tiny_run()
    image = run.model.image
    levels = np.zeros((6, *image.shape), np.uint8)
    levels[:3] = 255
    data = Dataset("halves", image, train=levels, test=levels[:1])
    bits = 1 if image.binarize else image.num_bits
    one_bit = image.num_dimensions * math.log(2)
    assert independent_limit(run, data) == pytest.approx(one_bit * (1 + 0.05 * bits))


def test_only_runs_that_minimise_the_weighted_bound_are_judged():
    run = tiny_run()
    for name, objective in OBJECTIVES.items():
        assert is_judged(dataclasses.replace(run, objective=objective())) == (name == "elbo")
    assert not is_judged(dataclasses.replace(run, objective=OBJECTIVES["elbo"](beta=4.0)))
    others = Learning(500, None)
    for _ in range(WINDOWS):
        others.window(LATE, {"reconstruction": 31.0})  # such objectives may have no KL
    others.end(LATE)


def test_windows_of_the_past_that_lack_a_term_are_left_out():
    learning = Learning(500, lambda: 30.0, [{"nelbo": 31.0}, *map(means, [31.0] * (WINDOWS - 1))])
    learning.end(LATE)
    with pytest.raises(NothingLearnedError):
        learning.window(LATE, means(31.0))
