"""The band of gradient norms and the watch over a run, on numbers alone."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from nvae_jax.config.training import TrainingConfig
from nvae_jax.training.criterion import Criterion
from nvae_jax.training.guard import Health, after_update, all_finite, within_band
from nvae_jax.training.watch import STAYS, DivergenceError, Watch

BAND = TrainingConfig(epochs=10, batch_size=8, skip_threshold=4.0)


def seen(norms, health=None):
    """The health after gradients of these norms, and whether each was within the band."""
    health, inside = health or Health.fresh(), []
    for step, norm in enumerate(norms, 1):
        applied = within_band(BAND, health, jnp.float32(norm))
        inside.append(bool(applied))
        health = after_update(BAND, health, jnp.int32(step), jnp.float32(norm), applied)
    return health, inside


def test_moments_of_the_first_norms_are_those_of_a_sample():
    norms = np.exp(np.random.default_rng(0).normal(3.0, 0.5, 50))
    health, inside = seen(norms)
    np.testing.assert_allclose(health.log_norm, np.log(norms).mean(), rtol=1e-5)
    np.testing.assert_allclose(health.log_norm_variance, np.log(norms).var(), rtol=1e-4)
    assert all(inside)


def test_outliers_are_left_out_and_a_new_level_is_learned():
    rng = np.random.default_rng(1)
    usual, _ = seen(np.exp(rng.normal(3.0, 0.5, 100)))
    _, inside = seen([np.exp(3.0), np.exp(7.0), np.exp(3.5)], usual)
    assert inside == [True, False, True]
    # Gradients that are ten times larger for good are taken after a while.
    _, inside = seen(np.exp(rng.normal(3.0 + np.log(10) * 3, 0.5, 300)), usual)
    assert not inside[0]
    assert all(inside[-50:])


@pytest.mark.parametrize("norm", [0.0, np.inf, np.nan])
def test_a_norm_without_a_logarithm_leaves_the_band_as_it_is(norm):
    usual, _ = seen(np.exp(np.linspace(2, 3, 60)))
    after, _ = seen([norm], usual)
    for name in ("norms", "log_norm", "log_norm_variance"):
        assert getattr(after, name) == getattr(usual, name)


def test_without_a_threshold_there_is_no_band():
    plain = dataclasses.replace(BAND, skip_threshold=None)
    health = dataclasses.replace(Health.fresh(), norms=jnp.int32(99))
    assert within_band(plain, health, jnp.float32(1e30))
    assert after_update(plain, health, jnp.int32(1), jnp.float32(1), jnp.asarray(True)) == health


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_number_decides_whether_a_tree_is_finite(value):
    tree = {"a": jnp.ones((3, 4)), "b": [jnp.arange(3), jnp.ones(2, jnp.bfloat16)]}
    assert all_finite(tree)
    assert not all_finite(tree | {"a": tree["a"].at[2, 3].set(value)})
    assert not all_finite(tree | {"b": [tree["b"][0], tree["b"][1].at[1].set(value)]})


def test_a_nelbo_below_the_lowest_is_impossible():
    density, probability = Watch(), Watch(criterion=Criterion(lowest=0.0))
    for value in (3.0, 0.1, -0.1):
        density.window(1, value)
        probability.window(1, value)
    density.window(1, -50.0)
    with pytest.raises(DivergenceError, match=r"is -50\.0 nats, and pixels from 0 to 1 have none"):
        probability.window(1, -50.0)


@pytest.mark.parametrize("level", [300.0, -300.0, 3.0])
def test_a_jump_is_twice_the_usual_and_has_to_stay(level):
    up = level + 1.1 * abs(level)
    watch = Watch([level] * 5)
    for value in (up, up, level, up, np.nan):
        watch.window(1, value)
    assert watch.suspicious
    with pytest.raises(DivergenceError, match="has jumped"):
        watch.window(1, up)
    quiet = Watch([level] * 5)
    for value in np.linspace(level, level + 0.9 * abs(level), 20):
        quiet.window(1, value)
    assert not quiet.suspicious
    beginning = Watch()
    for value in (level, up, 4 * up)[:STAYS]:
        beginning.window(1, value)
    assert not beginning.suspicious
