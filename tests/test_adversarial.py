"""The latent discriminator: its optimum on two Gaussians is the log ratio of their densities."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from scipy.stats import norm

from nvae_jax.objectives.adversarial import (
    LatentDiscriminator,
    discriminator_loss,
    encoder_loss,
    estimated_kl,
)

# Equal-mass quantiles stand for the distributions, so that means are integrals.
QUANTILES = (np.arange(4000) + 0.5) / 4000
PRIOR = norm()
CODES = norm(0.8, 0.6)


def log_ratio(z):
    return PRIOR.logpdf(z) - CODES.logpdf(z)


def test_the_optimum_among_quadratic_logits_is_the_log_ratio():
    # The log ratio of two Gaussians is quadratic, so the best of these is the best of all.
    prior, codes = PRIOR.ppf(QUANTILES), CODES.ppf(QUANTILES)

    def logits(coefficients, z):
        return coefficients @ np.stack([np.ones_like(z), z, z**2])

    with jax.enable_x64(True):
        loss = jax.jit(lambda c: discriminator_loss(logits(c, prior), logits(c, codes)))
        best = scipy.optimize.minimize(loss, np.zeros(3), jac=jax.jit(jax.grad(loss)), tol=1e-10).x
        z = np.linspace(-1, 2.5, 50)
        np.testing.assert_allclose(logits(best, z), log_ratio(z), atol=0.02)
        kl = np.log(1 / 0.6) + (0.6**2 + 0.8**2) / 2 - 0.5
        np.testing.assert_allclose(estimated_kl(logits(best, codes)), kl, rtol=2e-3)
        # Of no discriminator at all the loss is 2 log 2, and the best one's is less.
        np.testing.assert_allclose(loss(np.zeros(3)), 2 * np.log(2), rtol=1e-12)
        assert loss(best) < loss(np.zeros(3)) - 0.1


def test_a_network_learns_the_log_ratio():
    prior, codes = (d.ppf(QUANTILES[::20]).astype("f")[:, None] for d in (PRIOR, CODES))
    network = LatentDiscriminator((32, 32))
    params = network.init(jax.random.key(0), prior)
    optimizer = optax.adam(3e-3)

    def update(carry, _):
        def loss(params):
            return discriminator_loss(network.apply(params, prior), network.apply(params, codes))

        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    start = params, optimizer.init(params)
    (params, _), _ = jax.jit(lambda carry: jax.lax.scan(update, carry, length=800))(start)
    z = np.linspace(-0.4, 1.6, 40).astype("f")
    learnt = network.apply(params, z[:, None])
    np.testing.assert_allclose(learnt, log_ratio(z), atol=0.15)


def test_the_priors_log_density_is_added():
    z = np.random.default_rng(0).normal(size=(5, 3)).astype("f")
    with_prior, without = LatentDiscriminator((4,)), LatentDiscriminator((4,), add_log_prior=False)
    params = with_prior.init(jax.random.key(0), z)
    difference = with_prior.apply(params, z) - without.apply(params, z)
    chex.assert_shape(difference, (5,))
    np.testing.assert_allclose(difference, norm.logpdf(z).sum(1), rtol=1e-5)


@pytest.mark.parametrize("saturating", [False, True])
def test_the_encoders_losses_and_slopes(saturating):
    logits = jnp.array([-6.0, 0.0, 6.0])
    d = 1 / (1 + np.exp(-np.asarray(logits)))
    expected = np.log(1 - d) if saturating else -np.log(d)
    np.testing.assert_allclose(encoder_loss(logits, saturating), expected.mean(), rtol=1e-5)
    # Both raise the logits; where the discriminator is sure, only one still does.
    slopes = 3 * jax.grad(encoder_loss)(logits, saturating)
    np.testing.assert_allclose(slopes, -d if saturating else d - 1, atol=1e-6)
