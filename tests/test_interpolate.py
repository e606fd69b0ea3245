"""Ways between images: their ends, their lengths, and what stays."""

import functools

import numpy as np
import pytest
from tiny import ONE_DEVICE, make_run

from nvae_jax.evaluation.paths import linear, spherical
from nvae_jax.evaluation.sampling import sample_batches
from nvae_jax.evaluation.trained import open_run
from nvae_jax.modes.interpolate import InterpolateOptions, interpolate
from nvae_jax.modes.reconstruct import ReconstructOptions, reconstruct

# One size of batches for all, so that the functions are compiled once.
Options = functools.partial(InterpolateOptions, batch_size=2)
RNG = np.random.default_rng(0)


def test_spherical_ways_turn_at_one_speed_and_keep_their_length():
    a, b = RNG.normal(size=(2, 3, 4, 5))
    a, b = (x / np.linalg.norm(x, axis=(1, 2), keepdims=True) for x in (a, b))
    way = spherical(a, b, 7)
    np.testing.assert_allclose(way[:, 0], a, atol=1e-12)
    np.testing.assert_allclose(way[:, -1], b, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(way, axis=(2, 3)), 1)
    steps = (way[:, 1:] * way[:, :-1]).sum((2, 3))
    np.testing.assert_allclose(steps, np.tile(steps[:, :1], 6))
    whole = np.arccos((a * b).sum((1, 2)))
    np.testing.assert_allclose(6 * np.arccos(steps[:, 0]), whole)


def test_ways_of_no_direction_are_straight():
    a = RNG.normal(size=(2, 5))
    np.testing.assert_array_equal(spherical(a, a, 3), np.stack([a, a, a], 1))
    np.testing.assert_allclose(spherical(a, 3 * a, 3)[:, 1], 2 * a)
    np.testing.assert_allclose(spherical(0 * a, a, 3)[:, 2], a)
    np.testing.assert_allclose(linear(a, -a, 3)[:, 1], 0 * a, atol=1e-12)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize("space", ["noise", "latents"])
def test_ways_between_images_end_at_their_reconstructions(path, space):
    names = ("test:0-2",)
    options = ReconstructOptions(names, (4,), "groups", posterior_temperature=0.0, batch_size=2)
    ends = reconstruct(open_run(path, ONE_DEVICE), options)[:, 1]
    ways = interpolate(open_run(path, ONE_DEVICE), Options(names, space=space, steps=3))
    assert ways.shape == (2, 3, 28, 28, 1)
    np.testing.assert_allclose(ways[:, 0], ends[:-1], atol=1e-4)
    np.testing.assert_allclose(ways[:, -1], ends[1:], atol=1e-4)
    assert (path / "interpolate" / "interpolation.png").exists()
    assert (path / "interpolate" / "interpolation_animated.gif").exists()


def test_scales_that_do_not_move_stay_the_firsts(path):
    options = Options(("test:0-1",), space="latents", steps=2, groups=())
    (way,) = interpolate(open_run(path, ONE_DEVICE), options)
    np.testing.assert_allclose(way[0], way[1], atol=1e-5)
    (way,) = interpolate(open_run(path, ONE_DEVICE), Options(("test:0-1",), steps=2, scales=(1,)))
    assert np.abs(way[0] - way[1]).max() > 1e-3


def test_ways_between_samples_end_at_them(path):
    model = open_run(path, ONE_DEVICE)
    temperatures = np.full(4, 0.7, np.float32)
    batches = sample_batches(model, 3, temperatures, seed=5, batch_size=2)
    samples = np.concatenate([images for _, images in batches])
    options = Options(samples=2, steps=3, temperature=0.7, seed=5, animation="webp")
    ways = interpolate(open_run(path, ONE_DEVICE), options)
    np.testing.assert_allclose(ways[:, 0], samples[:2], atol=1e-4)
    np.testing.assert_allclose(ways[:, -1], samples[1:], atol=1e-4)


def test_impossible_ways_are_refused(path):
    with pytest.raises(ValueError, match="steps is 1; allowed: 2 or more"):
        Options(steps=1)
    with pytest.raises(ValueError, match="space is 'latents'; allowed: noise, between samples"):
        Options(samples=2, space="latents")
    with pytest.raises(ValueError, match="allowed: two images or more"):
        interpolate(open_run(path, ONE_DEVICE), Options(("test:0",)))
