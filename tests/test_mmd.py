"""The discrepancy of two samples against its definition and against integrals of Gaussians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from nvae_jax.objectives.mmd import SCALES, info_vae_penalty, squared_mmd

MEAN = np.array([0.7, -0.3, 0.0])
SIGMA = np.array([0.5, 1.2, 0.8])


def kernel_by_definition(name, x, y, scales):
    distance = ((x - y) ** 2).sum()
    sizes = [2 * len(x) * s for s in scales]
    if name == "rbf":
        return sum(np.exp(-distance / c) for c in sizes)
    return sum(c / (c + distance) for c in sizes)


def expected_rbf(size, mean, variance):
    """E exp(−|d|² / size) of d ~ N(mean, variance), independent latents."""
    spread = 1 + 2 * variance / size
    return np.prod(np.exp(-(mean**2) / (size * spread)) / np.sqrt(spread))


def expected_kernel(name, mean, variance, scales):
    """The mean kernel of two draws whose difference is N(mean, variance)."""
    total = 0.0
    for s in scales:
        size = 2 * len(mean) * s
        if name == "rbf":
            total += expected_rbf(size, mean, variance)
        else:  # C / (C + d²) = ∫ exp(−t) exp(−t d² / C) dt, a mixture of RBF kernels
            total += quad(
                lambda t, c=size: np.exp(-t) * expected_rbf(c / t, mean, variance), 0, 60
            )[0]
    return total


def expected_mmd(name, mean, sigma, scales):
    """MMD² of N(mean, sigma²) and N(0, I)."""
    zero, one = np.zeros_like(mean), np.ones_like(mean)
    within = expected_kernel(name, zero, 2 * sigma**2, scales)
    within += expected_kernel(name, zero, 2 * one, scales)
    return within - 2 * expected_kernel(name, mean, sigma**2 + 1, scales)


@pytest.mark.parametrize("name", ["rbf", "imq"])
def test_by_its_definition(name):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5, 4)), rng.normal(1, 2, size=(7, 4))
    scales = (0.3, 2.0)

    def mean_of_pairs(a, b):
        pairs = [(p, q) for i, p in enumerate(a) for j, q in enumerate(b) if a is not b or i != j]
        return np.mean([kernel_by_definition(name, p, q, scales) for p, q in pairs])

    expected = mean_of_pairs(x, x) + mean_of_pairs(y, y) - 2 * mean_of_pairs(x, y)
    with jax.enable_x64(True):
        for block in (2, 256):
            actual = squared_mmd(jnp.asarray(x), jnp.asarray(y), name, scales, block)
            np.testing.assert_allclose(actual, expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["rbf", "imq"])
def test_unbiased_for_two_gaussians(name):
    # With four codes a sample, the terms i = j would shift the mean by far more than the error.
    rng = np.random.default_rng(0)
    x = MEAN + SIGMA * rng.normal(size=(20_000, 4, 3))
    y = rng.normal(size=(20_000, 4, 3))
    estimate = jax.jit(jax.vmap(lambda x, y: squared_mmd(x, y, name)))
    values = np.asarray(estimate(x.astype("f"), y.astype("f")))
    error = values.std() / np.sqrt(len(values))
    expected = expected_mmd(name, MEAN, SIGMA, SCALES)
    assert abs(values.mean() - expected) < 4 * error
    assert 20 * error < expected


def test_far_codes_are_pulled_in_where_the_rbf_kernels_have_no_say():
    y = np.random.default_rng(0).normal(size=(32, 2)).astype("f")
    far = y + np.float32([60, 0])

    def slopes(name):
        return np.asarray(jax.jit(jax.grad(lambda x: squared_mmd(x, y, name, block=8)))(far))

    # What the codes do to one another sums to 0, and C / (C + d²) has the slope −2 d C / (C + d²)².
    sizes = 4 * np.asarray(SCALES)
    distance = far[:, None] - y
    steepness = (sizes / (sizes + (distance**2).sum(-1)[..., None]) ** 2).sum(-1)
    expected = 4 * (distance * steepness[..., None]).mean((0, 1))
    np.testing.assert_allclose(slopes("imq").sum(0), expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(slopes("rbf").sum(0), 0, atol=1e-7)


def test_info_vae_between_the_elbo_and_wae():
    kl, discrepancy = jnp.array([1.0, 3.0]), jnp.float32(0.5)
    np.testing.assert_allclose(info_vae_penalty(kl, discrepancy, 0.0, 1.0), kl)
    np.testing.assert_allclose(info_vae_penalty(kl, discrepancy, 1.0, 10.0), [5.0, 5.0])
    np.testing.assert_allclose(info_vae_penalty(kl, discrepancy, 0.5, 2.0), 0.5 * kl + 0.75)


@pytest.mark.parametrize(("name", "number"), [("laplace", 4), ("imq", 1)])
def test_impossible_kernels_and_samples(name, number):
    with pytest.raises(ValueError, match="allowed: rbf, imq for 2 or more"):
        squared_mmd(jnp.zeros((number, 2)), jnp.zeros((4, 2)), name)
