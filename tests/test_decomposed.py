"""The parts of the KL against their definitions, term by term, and against Gaussian integrals."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

from nvae_jax.model.distributions import Normal
from nvae_jax.objectives.decomposed import decomposed_kl, kl_parts

GROUPS = (2, 1, 3)
MEMBERS = ([0, 1], [2], [3, 4, 5])
PARTS = ("mutual_information", "between_groups", "within_groups", "dimension_wise")


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def codes(number, latents, seed=0):
    rng = np.random.default_rng(seed)
    mean, sigma = rng.normal(size=(number, latents)), rng.uniform(0.2, 1.5, (number, latents))
    return mean, sigma, mean + sigma * rng.normal(size=mean.shape)


def log_aggregate(i, batch, mean, sigma, z, members, dataset_size):
    """The estimate of log q(z_i) of some latents, in words of its definition."""
    terms, weights = [], []
    for k in batch:
        terms.append(norm.logpdf(z[i, members], mean[k, members], sigma[k, members]).sum())
        others = (dataset_size - 1) / (dataset_size * (len(batch) - 1))
        weights.append(1 / dataset_size if k == i else others)
    return logsumexp(terms, b=weights)


def brute_force(batch, mean, sigma, z, groups, dataset_size):
    rows = []
    latents = range(z.shape[1])
    for i in batch:
        marginals = [log_aggregate(i, batch, mean, sigma, z, [j], dataset_size) for j in latents]
        blocks = [log_aggregate(i, batch, mean, sigma, z, list(g), dataset_size) for g in groups]
        joint = log_aggregate(i, batch, mean, sigma, z, list(latents), dataset_size)
        own = norm.logpdf(z[i], mean[i], sigma[i]).sum()
        within = [b - sum(marginals[j] for j in g) for b, g in zip(blocks, groups, strict=True)]
        rows.append((own - joint, joint - sum(blocks), sum(within),
                     sum(marginals) - norm.logpdf(z[i]).sum()))  # fmt: skip
    return dict(zip(PARTS, np.transpose(rows), strict=True))


@pytest.mark.parametrize("batch", [range(7), [4, 1, 6]])
def test_the_parts_by_brute_force(batch):
    mean, sigma, z = codes(7, 6)
    index = np.asarray(batch)
    posterior = Normal(mean[index], sigma[index])
    parts = jax.jit(lambda z: kl_parts(posterior, z, 7, GROUPS, block=2))(z[index])
    expected = brute_force(batch, mean, sigma, z, MEMBERS, 7)
    for name in PARTS:
        np.testing.assert_allclose(getattr(parts, name), expected[name], rtol=1e-10, atol=1e-12)
    kl = (posterior.log_prob(z[index]) - norm.logpdf(z[index])).sum(1)
    np.testing.assert_allclose(parts.kl, kl, rtol=1e-12)
    # Without groups there is nothing within, and the total correlation is the same.
    ungrouped, one_group = jax.jit(
        lambda z: (kl_parts(posterior, z, 7), kl_parts(posterior, z, 7, [6]))
    )(z[index])
    np.testing.assert_allclose(ungrouped.within_groups, 0, atol=1e-12)
    np.testing.assert_allclose(ungrouped.between_groups, parts.total_correlation, rtol=1e-10)
    np.testing.assert_allclose(one_group.between_groups, 0, atol=1e-12)


def test_the_estimate_of_q_is_unbiased_over_batches():
    # Over all batches of a dataset that hold image 0; its odd-weight form has the same mean.
    number, size = 6, 3
    mean, sigma, z = codes(number, 2)

    def density(k):
        return np.exp(norm.logpdf(z[0], mean[k], sigma[k]).sum())

    exact = np.mean([density(k) for k in range(number)])
    ours, odd = [], []
    split = jax.jit(lambda posterior, z: kl_parts(posterior, z, number).mutual_information[0])
    for others in itertools.permutations(range(1, number), size - 1):
        index = np.asarray([0, *others])
        information = split(Normal(mean[index], sigma[index]), z[index])
        ours.append(density(0) * np.exp(-information))
        m = size - 1
        weights = [1 / number] + [1 / m] * (m - 1) + [(number - m) / (number * m)]
        odd.append(sum(w * density(k) for w, k in zip(weights, index, strict=True)))
    np.testing.assert_allclose(np.mean(ours), exact, rtol=1e-12)
    np.testing.assert_allclose(np.mean(odd), exact, rtol=1e-12)


def test_a_linear_gaussian_encoder_by_its_closed_form():
    # x ~ N(0, I) and z = A x + noise: q(z) is N(0, A Aᵀ + s²), and all parts are known.
    latents, number, noise = 3, 4000, 0.6
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(latents, latents)) * 0.5
    mean = rng.normal(size=(number, latents)) @ weights.T
    z = mean + noise * rng.normal(size=mean.shape)
    posterior = Normal(mean.astype("f"), np.full(mean.shape, noise, "f"))
    parts = jax.jit(lambda z: kl_parts(posterior, z, number, [2, 1]))(z.astype("f"))

    covariance = weights @ weights.T + noise**2 * np.eye(latents)
    variances = np.diag(covariance)
    pair = np.linalg.slogdet(covariance[:2, :2])[1]
    whole = np.linalg.slogdet(covariance)[1]
    expected = {
        "mutual_information": 0.5 * (whole - latents * np.log(noise**2)),
        "between_groups": 0.5 * (pair + np.log(variances[2]) - whole),
        "within_groups": 0.5 * (np.log(variances[:2]).sum() - pair),
        "dimension_wise": 0.5 * (variances - 1 - np.log(variances)).sum(),
    }
    for name, value in expected.items():
        values = np.asarray(getattr(parts, name))
        error = values.std() / np.sqrt(number)
        assert abs(values.mean() - value) < 4 * error + 0.02, name
    # and image by image the aggregate is the Gaussian
    joint = posterior.log_prob(z).sum(1) - parts.mutual_information
    exact = multivariate_normal(np.zeros(latents), covariance).logpdf(z)
    assert np.abs(joint - exact).mean() < 0.1


def test_factors_weigh_the_parts_and_their_gradients():
    mean, sigma, z = codes(5, 4)
    factors = dict(zip(PARTS, (0.5, 6.0, 2.0, 3.0), strict=True))

    def parts(mean):
        return kl_parts(Normal(mean, sigma), z, 100, [2, 2], block=2)

    @jax.jit
    def slopes(mean):
        whole = jax.grad(lambda mean: decomposed_kl(parts(mean), **factors).sum())(mean)
        return whole, jax.jacrev(lambda mean: jax.tree.map(jnp.sum, parts(mean)))(mean)

    whole, single = slopes(mean)
    expected = sum(factor * getattr(single, name) for name, factor in factors.items())
    np.testing.assert_allclose(whole, expected, rtol=1e-10)
    # With factors of 1 only the KL is left: every image's own.
    plain = sum(getattr(single, name) for name in PARTS)
    np.testing.assert_allclose(plain, (z - mean) / sigma**2, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("batch", "groups"), [(1, None), (3, [2, 1]), (3, [4, 0])])
def test_impossible_batches_and_groups(batch, groups):
    mean, sigma, z = codes(batch, 4)
    with pytest.raises(
        ValueError, match=rf"a batch of {batch} with 4 latents .*allowed: 2 or more"
    ):
        kl_parts(Normal(mean, sigma), z, 10, groups)
