"""Compression: what is put on the stack comes back, and costs what the model says."""

import contextlib
import functools

import numpy as np
import pytest

pytest.importorskip("constriction", reason="requires the extra `compression`")

import jax.numpy as jnp
from hypothesis import given, settings
from hypothesis import strategies as st

from nvae_jax.compression import tiles
from nvae_jax.compression.coder import ExhaustedError, MismatchError, Stack
from nvae_jax.compression.latents import NONE, PRECISIONS, LatentBins, choose_precisions
from nvae_jax.compression.opening import compress_opening, decompress_opening
from nvae_jax.compression.pixels import BernoulliPixels, MixturePixels, pop_pixels, push_pixels
from nvae_jax.model.distributions import LogisticMixture

quickly = functools.partial(settings, deadline=None)


def random_stack(words=4096, seed=0):
    rng = np.random.default_rng(seed)
    return Stack(rng.integers(0, 2**32, words, dtype=np.uint32), seal=True)


def mixture(rng, channels, num_bits, pixels, mixtures=3):
    """A mixture as the network gives it, and the model's own of the same parameters."""
    logits = rng.normal(size=(1, 1, pixels, LogisticMixture.num_parameters(channels, mixtures)))
    logits = np.float32(logits)
    own = LogisticMixture.from_logits(jnp.asarray(logits), channels, mixtures, num_bits)
    weights = np.exp(own.logits - np.logaddexp.reduce(np.float64(own.logits), axis=0))
    parts = weights, own.means, np.exp(-own.log_scales), own.coefficients
    parts = [np.asarray(x)[..., 0, 0, :] for x in parts]
    return MixturePixels(*parts, num_bits=num_bits), own


@quickly(max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    channels=st.integers(1, 4),
    num_bits=st.integers(1, 8),
    pixels=st.integers(1, 40),
    sharpness=st.sampled_from([0.1, 3.0, 30.0]),
)
def test_pixels_come_back_and_the_stack_is_what_it_was(seed, channels, num_bits, pixels, sharpness):
    rng = np.random.default_rng(seed)
    levels = rng.integers(0, 2**num_bits, (channels, pixels))
    distribution = MixturePixels(
        rng.dirichlet(np.ones(3), pixels).T,
        rng.normal(size=(channels, 3, pixels)),
        np.exp(sharpness * rng.uniform(-1, 0.2, (channels, 3, pixels))) * 9,
        rng.uniform(-1, 1, (channels * (channels - 1) // 2, 3, pixels)),
        num_bits,
    )
    for model in (distribution, BernoulliPixels(rng.uniform(size=(channels, pixels)).round(1))):
        values = levels % 2**model.num_bits
        stack = random_stack(16)
        before = stack.words()
        push_pixels(stack, model, values)
        np.testing.assert_array_equal(pop_pixels(stack, model, pixels), values)
        np.testing.assert_array_equal(stack.words(), before)


@pytest.mark.parametrize(("channels", "num_bits"), [(1, 8), (3, 5), (4, 3)])
def test_pixels_cost_their_negative_log_likelihood(channels, num_bits):
    rng = np.random.default_rng(1)
    pixels = 2000
    model, own = mixture(rng, channels, num_bits, pixels)
    levels = rng.integers(0, 2**num_bits, (channels, pixels))
    x = jnp.asarray(levels.T[None, None] / (2**num_bits - 1), jnp.float32)
    nats = -np.asarray(own.log_prob(x), np.float64)[0, 0]
    stack = random_stack()
    before = stack.bits
    push_pixels(stack, model, levels)
    bits = nats.sum() / np.log(2)
    assert stack.bits - before == pytest.approx(bits, rel=2e-4)


def test_every_level_can_be_coded_however_unlikely():
    ones = np.ones((1, 256))
    needle = MixturePixels(ones, -ones[None], 1e3 * ones[None], np.zeros((0, 1, 256)), 8)
    levels = np.arange(256)[None]
    stack = random_stack(16)
    push_pixels(stack, needle, levels)
    np.testing.assert_array_equal(pop_pixels(stack, needle, 256), levels)


@quickly(max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    precisions=st.lists(st.sampled_from(PRECISIONS), min_size=1, max_size=5),
)
def test_latents_come_back_and_the_stack_is_what_it_was(seed, precisions):
    rng = np.random.default_rng(seed)
    bins = LatentBins(np.asarray(precisions))
    shape = (2, 3, 2, len(precisions))
    offset, ratio = 3 * rng.normal(size=shape), np.exp(2 * rng.normal(size=shape))
    stack = random_stack()
    before = stack.words()
    n = bins.draw(stack, offset, ratio)
    assert (n[..., np.asarray(precisions) == NONE] == 0).all()
    between = stack.words()
    bins.push(stack, n)
    np.testing.assert_array_equal(bins.pop(stack, shape), n)
    np.testing.assert_array_equal(stack.words(), between)
    bins.undraw(stack, n, offset, ratio)
    np.testing.assert_array_equal(stack.words(), before)


@quickly(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), words=st.integers(1, 40), bits=st.integers(0, 2000))
def test_what_is_scrambled_twice_is_as_it_was(seed, words, bits):
    rng = np.random.default_rng(seed)
    stack = random_stack(words, seed)
    stack.push(rng.integers(0, 2, 50), stack.binary, rng.uniform(0.1, 0.9, 50))
    before, size = stack.words(), stack.bits
    stack.scramble(bits)
    assert stack.bits == size
    assert (bits < 16 or size < 80) == np.array_equal(stack.words(), before)
    stack.scramble(bits)
    np.testing.assert_array_equal(stack.words(), before)


def test_samples_of_one_image_say_nothing_of_the_next_ones():
    # The posterior is in the prior's upper tail for every image. The bits that say so are on top of
    # the stack when the next image is sampled, which must not be in the posterior's upper tail.
    bins = LatentBins(np.full(1, 5))
    offset, ratio = np.full((1, 4, 4, 1), 2.0), np.full((1, 4, 4, 1), 0.3)
    stack, means = random_stack(), []
    for _ in range(200):
        stack.scramble(16 * 8)
        n = bins.draw(stack, offset, ratio)
        bins.push(stack, n)
        means.append(n.mean() / 2**5)
    assert np.mean(means) == pytest.approx(2, abs=4 * 0.3 / np.sqrt(16 * 200))


def test_latents_cost_the_divergence_of_the_posterior_from_the_prior():
    bins = LatentBins(np.full(1, 5))
    shape = (1, 200, 200, 1)
    offset, ratio = np.full(shape, 0.7), np.full(shape, 0.3)
    stack = random_stack(100_000)
    before = stack.bits
    n = bins.draw(stack, offset, ratio)
    value = bins.values(n, np.float32(2), np.float32(0.5))
    assert value.mean() == pytest.approx(2 + 0.5 * 0.7, abs=0.01)
    assert value.std() == pytest.approx(0.5 * 0.3, rel=0.02)
    bins.push(stack, n)
    divergence = 0.5 * (0.7**2 + 0.3**2) - 0.5 - np.log(0.3)
    assert (stack.bits - before) / n.size == pytest.approx(divergence / np.log(2), rel=0.02)


def test_a_stack_that_is_too_short_says_so():
    bins = LatentBins(np.full(1, 8))
    with pytest.raises(ExhaustedError):
        bins.draw(random_stack(64), np.zeros((1, 20, 20, 1)), np.ones((1, 20, 20, 1)))


@quickly(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), strength=st.sampled_from([0.1, 1.0, 100.0]))
def test_flows_are_bijections_of_the_bins(seed, strength):
    rng = np.random.default_rng(seed)
    bins = LatentBins(np.asarray([NONE, 1, 4]))
    shape = (2, 3, 3, 3)
    weights = np.tril(rng.normal(size=(27, 27)), -1)  # strictly causal, in any order

    def shift(z):
        return strength * np.sin(z.reshape(2, 27) @ weights.T).reshape(shape)

    mean, sigma = rng.normal(size=shape), np.exp(rng.normal(size=shape))
    n = bins.draw(random_stack(), np.zeros(shape), np.ones(shape))
    moved = bins.flow(n, shift, mean, sigma)
    assert (moved != n).any()
    np.testing.assert_array_equal(bins.unflow(moved, shift, mean, sigma), n)


def test_what_is_no_flow_has_no_inverse():
    bins = LatentBins(np.asarray([1]))
    one = np.ones((1, 1, 1, 1))
    with pytest.raises(MismatchError, match="no inverse"):
        bins.unflow(0 * one.astype(int), lambda z: 1.0 - 2.0 * z, 0 * one, one)


def test_precisions_grow_with_what_depends_on_them():
    assert choose_precisions(np.zeros(2), 1000, 1, 0).tolist() == [NONE, NONE]
    by_sensitivity = choose_precisions(np.asarray([1e-3, 1.0, 1e3]), 1000, 1, 0)
    assert (np.diff(by_sensitivity) > 0).all()
    assert choose_precisions(np.asarray([1.0]), 10**6, 1, 0) > choose_precisions(
        np.asarray([1.0]), 10, 1, 0
    )
    assert choose_precisions(np.asarray([1.0]), 1000, 64, 0) < choose_precisions(
        np.asarray([1.0]), 1000, 1, 0
    )


@quickly(max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(*[st.integers(1, 9)] * 3, st.integers(1, 4)),
    num_bits=st.integers(1, 8),
    kind=st.sampled_from(["noise", "black", "ramp"]),
)
def test_openings_come_back(seed, shape, num_bits, kind):
    levels = np.random.default_rng(seed).integers(0, 2**num_bits, shape)
    if kind != "noise":
        levels = np.zeros(shape, int) + (kind == "ramp") * np.arange(shape[2])[:, None]
    levels = (levels % 2**num_bits).astype(np.uint8)
    content = compress_opening(levels, num_bits)
    np.testing.assert_array_equal(decompress_opening(content, shape, num_bits), levels)
    for damaged in (content[:1], content[:-1] + b"\xff\xff", b"\2" + content[1:]):
        with contextlib.suppress(MismatchError):
            assert decompress_opening(damaged, shape, num_bits).shape == shape


@quickly(max_examples=30)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 8), st.integers(1, 8))
def test_images_are_what_their_tiles_join_to(height, width, h, w):
    image = np.arange(height * width * 2).reshape(height, width, 2)
    parts = tiles.split(image, (h, w))
    sizes = tiles.sizes([(height, width)], (h, w))
    assert len(parts) == len(sizes) == tiles.number((height, width), (h, w))
    assert tiles.masks(sizes, (h, w)).sum() == height * width
    for part, (rows, columns) in zip(parts, sizes, strict=True):
        again = tiles.completed(part[:rows, :columns], (h, w))
        np.testing.assert_array_equal(part, again)
    np.testing.assert_array_equal(tiles.join(parts, height, width), image)
