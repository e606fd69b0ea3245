import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nvae_jax.errors import ConfigError
from nvae_jax.image_spec import ImageSpec

SEED_KEY = jax.random.key(11)
ALL_LEVELS = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)


@functools.partial(jax.jit, static_argnames=("binarize", "num_bits"))
def eval_pixels(image, index, *, binarize, num_bits):
    spec = ImageSpec(*image.shape[1:], num_bits=num_bits, binarize=binarize)
    return spec.evaluation_pixels(image, index)


@functools.partial(jax.jit, static_argnames=("binarize", "flip", "num_bits"))
def train_pixels(image, index, epoch, *, binarize=False, flip=False, num_bits=8):
    spec = ImageSpec(*image.shape[1:], num_bits=num_bits, binarize=binarize)
    return spec.training_pixels(image, index, epoch, seed_key=SEED_KEY, flip=flip)


def make_batch(number=24):
    """Random images, with indices and epochs in no order."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (number, 6, 8, 3), np.uint8)
    return image, rng.permutation(number).astype(np.int32), rng.integers(0, 9, number, np.int32)


def repeat_levels(number):
    return jnp.broadcast_to(ALL_LEVELS, (number, 16, 16, 1))


def frequency_bound(number):
    """What none of 256 frequencies of `number` draws misses its mean by, but once in a million.

    Hoeffding's inequality and the union bound.
    """
    return np.sqrt(np.log(2 * 256 / 1e-6) / (2 * number))


@pytest.mark.parametrize("num_bits", range(1, 9))
def test_bit_reduction_agrees_with_integers_at_every_level(num_bits):
    top = 2**num_bits - 1
    expected = np.array([v // 2 ** (8 - num_bits) for v in range(256)])
    np.testing.assert_array_equal(
        ImageSpec(16, 16, 1, num_bits=num_bits).reduce_bits(ALL_LEVELS).ravel(), expected
    )

    zeros = np.zeros(1, np.int32)
    trained = train_pixels(ALL_LEVELS, zeros, zeros, num_bits=num_bits)
    evaluated = eval_pixels(ALL_LEVELS, zeros, binarize=False, num_bits=num_bits)
    for pixels in (trained, evaluated):
        assert pixels.dtype == jnp.float32
        np.testing.assert_allclose(pixels.ravel(), expected / top, rtol=2e-7)
        # Both ends exactly, where discretised likelihoods have their open bins.
        np.testing.assert_array_equal(pixels.ravel() == 0, expected == 0)
        np.testing.assert_array_equal(pixels.ravel() == 1, expected == top)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_bits": 0}, "num_bits is 0; allowed: 1 to 8"),
        ({"num_bits": 9}, "num_bits is 9; allowed: 1 to 8"),
        ({"channels": 0}, r"image_shape is \(6, 8, 0\); allowed: 1 to 1024 channels"),
        ({"width": 0}, r"image_shape is \(6, 0, 3\); allowed: sides of 1 to 16384"),
        ({"border": 3}, "border is 3; allowed: 0 or more, and less than half of 6 pixels"),
        ({"border": -1}, "border is -1"),
    ],
)
def test_impossible_images_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        ImageSpec(**{"height": 6, "width": 8, "channels": 3} | values)


@pytest.mark.parametrize("border", [0, 2])
@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_the_border_is_zeros_that_are_not_counted(border, kind):
    spec = ImageSpec(12, 10, 3, border)
    assert spec.inner_shape == (12 - 2 * border, 10 - 2 * border, 3)
    assert spec.num_dimensions == np.prod(spec.inner_shape)
    inner = kind(np.random.default_rng(0).integers(1, 256, (4, *spec.inner_shape), np.uint8))
    padded = spec.with_border(inner)
    assert padded.shape == (4, *spec.shape)
    assert type(padded) is type(inner)
    assert padded.astype(int).sum() == inner.astype(int).sum()
    np.testing.assert_array_equal(spec.without_border(padded), inner)


def test_binarisation_frequencies_are_the_grey_levels():
    number = 4096
    same, different = np.full(number, 5, np.int32), np.arange(number, dtype=np.int32)
    for pixels in (
        train_pixels(repeat_levels(number), same, different, binarize=True),
        train_pixels(repeat_levels(number), different, same, binarize=True),
        eval_pixels(repeat_levels(number), different, binarize=True, num_bits=8),
    ):
        assert set(np.unique(pixels)) == {0, 1}
        frequencies = np.asarray(pixels).mean(axis=0).ravel()
        assert abs(frequencies - np.arange(256) / 255).max() < frequency_bound(number)
        # Only the ends are certain (so padding stays 0): levels 1 and 254 miss that by exp(-16).
        np.testing.assert_array_equal(np.flatnonzero(frequencies == 0), [0])
        np.testing.assert_array_equal(np.flatnonzero(frequencies == 1), [255])


def test_pixels_of_an_image_are_drawn_independently():
    number = 4096
    image = jnp.full((number, 2, 2, 1), 128, jnp.uint8)
    index = np.arange(number, dtype=np.int32)
    pixels = np.asarray(eval_pixels(image, index, binarize=True, num_bits=8)).reshape(number, 4)
    correlation = np.corrcoef(pixels.T)
    assert abs(correlation - np.eye(4)).max() < 5 / np.sqrt(number)


def test_training_binarisation_is_drawn_anew_in_every_epoch():
    index = np.zeros(2, np.int32)
    draws = train_pixels(repeat_levels(2), index, np.array([0, 1], np.int32), binarize=True)
    again = train_pixels(repeat_levels(2), index, np.array([0, 0], np.int32), binarize=True)
    assert np.any(draws[0] != draws[1])
    np.testing.assert_array_equal(again[0], again[1])


def test_evaluation_binarisation_is_once_and_for_all():
    image, index, _ = make_batch()
    first = eval_pixels(image, index, binarize=True, num_bits=8)
    # Not even the kind of JAX's random keys, which runs may choose for speed, changes it.
    with jax.default_prng_impl("rbg"):
        spec = ImageSpec(*image.shape[1:], binarize=True)
        second = jax.jit(spec.evaluation_pixels)(image, index)
    np.testing.assert_array_equal(first, second)


def test_evaluation_binarisation_depends_on_the_index_alone():
    pixels = eval_pixels(repeat_levels(3), np.array([4, 9, 4]), binarize=True, num_bits=8)
    np.testing.assert_array_equal(pixels[0], pixels[2])
    assert np.any(pixels[0] != pixels[1])


def test_flips_mirror_whole_images_left_to_right_half_the_time():
    image, _, _ = make_batch(1)
    number = 1000
    images, same = np.repeat(image, number, axis=0), np.zeros(number, np.int32)
    different = np.arange(number, dtype=np.int32)
    for index, epoch in [(different, same), (same, different)]:
        pixels = np.asarray(train_pixels(images, index, epoch, flip=True))
        kept = np.all(pixels == pixels[0], axis=(1, 2, 3))
        mirror_image = pixels[0][:, ::-1]
        assert np.all(pixels[~kept] == mirror_image)
        assert np.any(pixels[0] != mirror_image)
        assert abs(kept.mean() - 0.5) < 5 * 0.5 / np.sqrt(number)


def test_flips_happen_only_where_asked():
    image, index, epoch = make_batch()
    np.testing.assert_array_equal(
        train_pixels(image, index, epoch), eval_pixels(image, index, binarize=False, num_bits=8)
    )


def test_flips_go_along_with_binarisation():
    # On black and white images binarisation changes nothing, so flips can be seen through it.
    image, index, epoch = make_batch(64)
    image = np.where(image < 128, 0, 255).astype(np.uint8)
    flipped = train_pixels(image, index, epoch, flip=True)
    assert np.any(flipped != image / 255)
    np.testing.assert_array_equal(
        train_pixels(image, index, epoch, flip=True, binarize=True), flipped
    )


def test_results_do_not_depend_on_the_batch_or_the_devices():
    batch = make_batch(24)
    prepare = functools.partial(train_pixels, binarize=True, flip=True)
    expected = np.asarray(prepare(*batch))

    order = np.random.default_rng(1).permutation(24)
    np.testing.assert_array_equal(prepare(*(x[order] for x in batch)), expected[order])
    for i in range(3):
        np.testing.assert_array_equal(prepare(*(x[i : i + 1] for x in batch))[0], expected[i])

    assert jax.device_count() == 8
    sharding = NamedSharding(Mesh(jax.devices(), "data"), PartitionSpec("data"))
    sharded = prepare(*(jax.device_put(x, sharding) for x in batch))
    assert len(sharded.sharding.device_set) == 8
    np.testing.assert_array_equal(sharded, expected)
