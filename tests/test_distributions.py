"""Distributions of latents and images: official numbers, and what makes them distributions."""

import dataclasses
import functools
import itertools
import math
from decimal import Decimal, localcontext

import goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvae_jax.image_spec import ImageSpec
from nvae_jax.model import ModelConfig
from nvae_jax.model.distributions import (
    Bernoulli,
    LogisticMixture,
    Normal,
    NormalPixels,
    image_distribution,
    log_likelihood,
    num_image_parameters,
)

mixture_from = jax.jit(LogisticMixture.from_logits, static_argnums=(1, 2, 3, 4))


@jax.jit
def log_prob_of(distribution, x):
    return distribution.log_prob(x)


def images_under(name, prefix):
    return {k: goldens.nhwc(v) for k, v in goldens.under(name, prefix).items() if v.ndim == 4}


def random_mixture(channels, mixtures, num_bits, shape=(1, 1, 1)):
    """A mixture with parameters of all sizes, the same at every pixel of `shape` (B, H, W)."""
    number = LogisticMixture.num_parameters(channels, mixtures)
    logits = np.random.default_rng(0).normal(size=number).astype(np.float32)
    return mixture_from(np.broadcast_to(logits, (*shape, number)), channels, mixtures, num_bits)


def all_values(channels, num_bits):
    """(1, 1, levels ** channels, channels): every value that a pixel can have."""
    levels = np.linspace(0, 1, 2**num_bits)
    return np.array([[list(itertools.product(levels, repeat=channels))]], np.float32)


def assert_frequencies(counts, probabilities):
    """Asserts that counts of many draws are within five standard errors of their means."""
    standard_error = np.sqrt(probabilities * (1 - probabilities) / counts.sum(0))
    assert np.all(np.abs(counts / counts.sum(0) - probabilities) < 5 * standard_error)


def test_normal_agrees_with_the_official_one():
    arrays = goldens.under("standalone", "normal")
    normal = Normal.from_raw(arrays["mu"], arrays["log_sigma"])
    cold = Normal.from_raw(arrays["mu"], arrays["log_sigma"], temperature=0.7)
    other = Normal.from_raw(arrays["mu2"], arrays["log_sigma2"])
    goldens.assert_close(normal.mean, arrays["mu_clamped"])
    goldens.assert_close(normal.sigma, arrays["sigma"])
    goldens.assert_close(normal.log_prob(arrays["z"]), arrays["log_p"])
    goldens.assert_close(normal.sample(arrays["z"]), arrays["sample_given_eps_z"])
    goldens.assert_close(normal.kl(other), arrays["kl_1_2"])
    goldens.assert_close(cold.sigma, arrays["sigma_t0.7"])
    goldens.assert_close(cold.log_prob(arrays["z"]), arrays["log_p_t0.7"])


def test_analytic_kl_is_the_mean_log_ratio():
    rng = np.random.default_rng(0)
    raw = rng.normal(size=(4, 1, 10)).astype(np.float32)
    q, p = Normal.from_raw(*raw[:2]), Normal.from_raw(*raw[2:])
    z = q.sample(rng.normal(size=(100_000, 10)).astype(np.float32))
    log_ratio = np.asarray(q.log_prob(z) - p.log_prob(z))
    standard_error = log_ratio.std(0) / math.sqrt(len(log_ratio))
    assert np.all(abs(log_ratio.mean(0) - q.kl(p)[0]) < 5 * standard_error)
    np.testing.assert_allclose(q.kl(q), 0.0, atol=1e-6)


# The difference of two float32 sigmoids near 1 is coarse, and so are the official numbers: in
# float64 the same rules are as far from them as 6e-5 at 8 bits and 2e-5 at 5.
@pytest.mark.parametrize(("num_bits", "tolerance"), [(8, 1e-5), (5, 2e-5)])
def test_official_bins_agree_with_the_official_ones(num_bits, tolerance):
    arrays = images_under("standalone", f"dml{num_bits}")

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def log_prob(param, x):
        mixture = LogisticMixture.from_logits(param, 3, 10, num_bits, official_bins=True)
        value = mixture.log_prob(x)
        return value.sum(), (value, mixture.mean())

    (_, (value, mean)), gradient = log_prob(arrays["param"], arrays["x"])
    expected = goldens.under("standalone", f"dml{num_bits}")["log_prob"]
    goldens.assert_close(value, expected, tolerance)
    goldens.assert_close(gradient, arrays["grad_param"], goldens.GRADIENTS)
    goldens.assert_close(mean, arrays["mean"])


@pytest.mark.parametrize("num_bits", [8, 5])
def test_masses_of_all_red_levels(num_bits):
    arrays = goldens.under("standalone", f"dml{num_bits}")
    x = goldens.nhwc(arrays["sweep_x"])
    param = np.broadcast_to(goldens.nhwc(arrays["sweep_param"]), (1, 1, 2**num_bits, 100))
    totals = {}
    for official in (True, False):
        mixture = mixture_from(param, 3, 10, num_bits, official)
        red = dataclasses.replace(
            mixture, means=mixture.means[:1], log_scales=mixture.log_scales[:1]
        )
        masses = np.exp(np.asarray(log_prob_of(red, x[..., :1]), np.float64))[0, 0]
        totals[official] = masses.sum()
        if official:
            goldens.assert_close(log_prob_of(mixture, x), arrays["sweep_log_prob"])
    # Official 8-bit bins count the last level twice: in its own bin and in that of level 254.
    excess = masses[-1] if num_bits == 8 else 0.0
    np.testing.assert_allclose(totals[False], 1.0, rtol=1e-5)
    np.testing.assert_allclose(totals[True], 1.0 + excess, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("shift", [0.0, -3.0])  # of the log-scales: broad and narrow logistics
def test_masses_of_all_values_of_a_pixel_sum_to_one(channels, shift):
    values = all_values(channels, num_bits=2)
    mixture = random_mixture(channels, 2, 2, values.shape[:-1])
    mixture = dataclasses.replace(mixture, log_scales=mixture.log_scales + shift)
    log_mass = log_prob_of(mixture, values)
    np.testing.assert_allclose(jnp.exp(log_mass).sum(), 1.0, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_parameters_and_mean_of_a_pixel(channels):
    mixtures, shape = 2, (1, 2, 3)
    number = LogisticMixture.num_parameters(channels, mixtures)
    raw = np.random.default_rng(0).normal(scale=3, size=(*shape, number)).astype(np.float32)
    mixture = LogisticMixture.from_logits(raw, channels, mixtures, 8)
    means = jax.jit(mixture.mean)()
    for pixel in np.ndindex(shape):
        logits, *parts = np.split(raw[pixel], number // mixtures)
        parts = np.reshape(parts, (channels, -1, mixtures))
        coefficients = np.tanh(parts[:, 2:].reshape(-1, mixtures))
        pairs = [(j, i) for i in range(channels) for j in range(i)]
        at = (slice(None), slice(None), *pixel)
        np.testing.assert_array_equal(mixture.logits[at[1:]], logits)
        np.testing.assert_array_equal(mixture.means[at], parts[:, 0])
        np.testing.assert_array_equal(mixture.log_scales[at], np.maximum(parts[:, 1], -7))
        used = coefficients[: len(pairs)]
        np.testing.assert_allclose(mixture.coefficients[at], used, rtol=1e-5)
        weights = np.exp(logits) / np.exp(logits).sum()
        values = []
        for i in range(channels):
            earlier = sum(weights @ used[pairs.index((j, i))] * values[j] for j in range(i))
            values.append(np.clip(weights @ parts[i, 0] + earlier, -1, 1))
        np.testing.assert_allclose(2 * means[pixel] - 1, values, rtol=1e-4, atol=1e-5)


def test_channels_depend_on_the_observed_earlier_ones():
    # log p(x) = logsumexp_m of log π_m + Σ_i log p_m(x_i | x_<i), with one-channel distributions
    # of means μ_i + Σ_j c_ji x_j, and pairs (j, i) in the order 0→1, 0→2, 1→2, 0→3, …
    channels, mixtures, shape = 4, 3, (1, 1, 20)
    mixture = jax.tree.map(np.asarray, random_mixture(channels, mixtures, 3, shape))
    x = np.random.default_rng(0).integers(0, 8, (*shape, channels)).astype(np.float32) / 7
    pairs = [(j, i) for i in range(channels) for j in range(i)]
    assert mixture.coefficients.shape == (len(pairs), mixtures, *shape)

    terms = np.array(jax.nn.log_softmax(mixture.logits, axis=0))
    for i in range(channels):
        for m in range(mixtures):
            mean = mixture.means[i, m].copy()
            for j in range(i):
                mean += mixture.coefficients[pairs.index((j, i)), m] * (2 * x[..., j] - 1)
            log_scale, none = mixture.log_scales[i, m][None, None], np.zeros((0, 1, *shape))
            one = LogisticMixture(np.zeros((1, *shape)), mean[None, None], log_scale, none, 3)
            terms[m] += log_prob_of(one, x[..., i, None])
    expected = jax.nn.logsumexp(terms, axis=0)
    np.testing.assert_allclose(log_prob_of(mixture, x), expected, rtol=1e-5)


def precise_log_mass(level, mean, log_scale, steps):
    """log(σ(a) − σ(b)) as it is written, with 120 digits; open ends at the first and last level."""
    with localcontext() as context:
        context.prec = 120
        upper = (Decimal(2 * level + 1) / steps - 1 - mean) * (-log_scale).exp()
        lower = (Decimal(2 * level - 1) / steps - 1 - mean) * (-log_scale).exp()
        if lower + upper > 0:  # the same mass in the mirror image, where no 1 swallows the digits
            upper, lower, level = -lower, -upper, steps - level
        below_lower = Decimal(0) if level == 0 else 1 / (1 + (-lower).exp())
        below_upper = Decimal(1) if level == steps else 1 / (1 + (-upper).exp())
        return (below_upper - below_lower).ln()


def log_masses(num_bits, levels, means, log_scales):
    """Every combination of the three, its log mass, and the gradient by mean and log-scale."""
    grid = np.array(list(itertools.product(levels, means, log_scales)), np.float32)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def log_mass(raw, x):
        values = LogisticMixture.from_logits(raw, 1, 1, num_bits).log_prob(x)
        return values.sum(), values

    raw = np.concatenate([np.zeros_like(grid[:, :1]), grid[:, 1:]], axis=1)
    x = grid[:, :1] / (2**num_bits - 1)
    (_, values), gradients = log_mass(raw[None, None], x[None, None])
    return grid, np.asarray(values)[0, 0], np.asarray(gradients)[0, 0, :, 1:]


@pytest.mark.parametrize("num_bits", [8, 5, 1])
def test_exact_bins_and_their_gradients_agree_with_many_digits(num_bits):
    steps = 2**num_bits - 1
    levels = sorted({0, steps // 3, steps - 1, steps})
    means, log_scales = (-100.0, -1.0, -0.3125, 0.0, 0.75, 40.0), (-7.0, -3.0, 0.0, 5.0, 100.0)
    step = Decimal("1e-20")
    results = log_masses(num_bits, levels, means, log_scales)
    for (level, mean, log_scale), value, gradient in zip(*results, strict=True):
        exact = functools.partial(precise_log_mass, int(level), steps=steps)
        m, s = Decimal(float(mean)), Decimal(float(log_scale))
        # Float32 places a level to 6e-8, which is 1e-4 of the smallest scale, e^-7.
        blur = 2e-7 * math.exp(-log_scale)
        np.testing.assert_allclose(value, float(exact(m, s)), rtol=1e-5, atol=1e-6 + blur)
        if log_scale > -7:  # there the bound halves the gradient of the scale
            by_mean = (exact(m + step, s) - exact(m - step, s)) / (2 * step)
            by_scale = (exact(m, s + step) - exact(m, s - step)) / (2 * step)
            slopes = [float(by_mean), float(by_scale)]
            np.testing.assert_allclose(gradient, slopes, rtol=1e-4, atol=1e-6)


def test_masses_and_gradients_are_finite_however_extreme_the_parameters():
    means, log_scales = (-1e4, -1.0, 0.5, 1e4), (-1e4, -100.0, -7.0, 0.0, 7.0, 100.0)
    for results in log_masses(8, (0, 1, 127, 254, 255), means, log_scales):
        assert np.all(np.isfinite(results))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_samples_and_mean_agree_with_the_official_ones(temperature):
    arrays = images_under("decoder", "mixture")

    @jax.jit
    def mean_and_sample(logits, component, value):
        mixture = LogisticMixture.from_logits(logits, 3, 10, 8)
        # The official sampler divides the scales by the temperature, ours multiplies them.
        scales = mixture.log_scales - 2 * math.log(temperature)
        official = dataclasses.replace(mixture, log_scales=scales)
        return mixture.mean(), official.sample_from_uniforms(component, value, temperature)

    uniforms = arrays["u_gumbel"], arrays["u_logistic"]
    mean, sample = mean_and_sample(arrays["logits"], *uniforms)
    goldens.assert_close(mean, arrays["mean"])
    goldens.assert_close(sample, arrays[f"sample_t{temperature}"])


def test_rounded_samples_follow_the_masses():
    number = 100_000
    mixture = random_mixture(1, 3, num_bits=2, shape=(1, 1, number))
    levels = np.rint(3 * np.asarray(jax.jit(mixture.sample)(jax.random.key(0)))).astype(int)
    mass = np.exp(log_prob_of(random_mixture(1, 3, 2, (1, 1, 4)), all_values(1, 2))).ravel()
    assert_frequencies(np.bincount(levels.ravel(), minlength=4), mass)


def test_bernoulli_and_normal_pixels_agree_with_the_official_ones():
    arrays = images_under("standalone", "bernoulli")
    log_prob = log_prob_of(Bernoulli(arrays["logits"]), arrays["x"])
    goldens.assert_close(log_prob, arrays["log_prob"].sum(-1))
    arrays = images_under("decoder", "bernoulli")
    goldens.assert_close(Bernoulli(arrays["logits"]).mean(), arrays["mean"])
    arrays = images_under("standalone", "normaldec")
    log_prob = log_prob_of(NormalPixels.from_logits(arrays["param"]), arrays["x"])
    goldens.assert_close(log_prob, arrays["log_prob"].sum(-1))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_of_a_bernoulli_follow_its_masses(temperature):
    logits = jnp.array([-3.0, -1.0, 0.0, 2.0]).reshape(1, 1, 4, 1)
    mass = jnp.exp(Bernoulli(logits / temperature).log_prob(jnp.ones(logits.shape)))
    tiled = Bernoulli(jnp.broadcast_to(logits, (100_000, 1, 4, 1)))
    sample = np.asarray(tiled.sample(jax.random.key(0), temperature))[:, 0, :, 0]
    assert_frequencies(np.stack([1 - sample, sample]).sum(1), np.stack([1 - mass, mass])[:, 0, 0])


def test_samples_of_normal_pixels_have_their_mean_and_spread():
    raw = jnp.array([0.3, -4.0, -3.0, -2.0])  # two channels; the second lies beyond black
    pixels = NormalPixels.from_logits(jnp.broadcast_to(raw, (10_000, 1, 1, 4)))
    mean, sigma = np.tanh(0.3 / 5) * 5 / 2 + 0.5, (np.exp(5 * np.tanh(-3 / 5)) + 0.01) / 2
    np.testing.assert_allclose(pixels.mean()[0, 0, 0], [mean, 0.0], rtol=1e-6)
    for temperature in (1.0, 0.5):
        sample = np.asarray(pixels.sample(jax.random.key(0), temperature))[:, 0, 0]
        assert abs(sample[:, 0].mean() - mean) < 5 * temperature * sigma / 100
        np.testing.assert_allclose(sample[:, 0].std(), temperature * sigma, rtol=0.05)
        np.testing.assert_array_equal(sample[:, 1], 0.0)


@pytest.mark.parametrize("num_bits", [3, 5, 8])
def test_bit_reduction_agrees_with_the_official_one(num_bits):
    arrays = goldens.under("standalone", "pre_process")
    spec = ImageSpec(height=1, width=1, channels=1, num_bits=num_bits)
    levels = spec.reduce_bits(np.rint(arrays["in"] * 255).astype(np.uint8))
    goldens.assert_close(levels / (2**num_bits - 1), arrays[f"bits{num_bits}"])


@pytest.mark.parametrize(
    ("channels", "options", "kind", "parameters", "bins"),
    [
        (1, {"likelihood": "bernoulli"}, Bernoulli, 1, None),
        (3, {"likelihood": "normal"}, NormalPixels, 6, None),
        (3, {"num_mixtures": 5, "num_bits": 3}, LogisticMixture, 50, (3, False)),
        (1, {"num_mixtures": 5, "bins": "official"}, LogisticMixture, 15, (8, True)),
    ],
)
def test_likelihood_of_images(channels, options, kind, parameters, bins):
    rng = np.random.default_rng(0)
    config = ModelConfig(image_shape=(8, 8, channels), border=2, **options)
    assert num_image_parameters(config) == parameters
    logits = rng.normal(size=(2, 8, 8, parameters)).astype(np.float32)
    x = rng.integers(0, 2, (2, *config.image_shape)).astype(np.float32)
    distribution = image_distribution(config, logits)
    assert isinstance(distribution, kind)
    if kind is LogisticMixture:
        assert (distribution.num_bits, distribution.official_bins) == bins
    inside = np.asarray(log_prob_of(distribution, x))[:, 2:6, 2:6].sum((1, 2))
    total = jax.jit(functools.partial(log_likelihood, config))(logits, x)
    np.testing.assert_allclose(total, inside, rtol=1e-5)
