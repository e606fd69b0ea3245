"""A plain VAE with classes: sums over them are exact, and draws have their probabilities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CLASSES, random_variables

from nvae_jax.model import mixture
from nvae_jax.model.conv_vae import ConvVAE
from nvae_jax.model.distributions import log_likelihood, reconstruction_error


@pytest.fixture(scope="module")
def classes():
    """A model with classes in no special state, and what it makes of three images."""
    variables = random_variables(CLASSES)
    x = np.random.default_rng(1).integers(0, 2, (3, 32, 32, 1)).astype(np.float32)
    noise = [
        np.random.default_rng(2).normal(size=(3, *shape)).astype(np.float32)
        for shape in CLASSES.latent_shapes
    ]
    apply = functools.partial(ConvVAE(CLASSES).apply, variables)
    return apply, x, noise, apply(x, False, noise)


def test_classes_are_summed_over_exactly(classes):
    apply, x, noise, output = classes
    z = apply(x, noise, method="encode").values[1]
    q = jax.nn.softmax(output.class_logits)
    log_px = np.zeros((3, 4))
    for k in range(4):
        y = np.tile(np.eye(4, dtype=np.float32)[k], (3, 1, 1, 1))
        logits = apply([y, z], method="decode")
        np.testing.assert_allclose(output.logits_of_classes[:, k], logits, rtol=1e-4, atol=1e-4)
        log_px[:, k] = log_likelihood(CLASSES, logits, x)
    error = reconstruction_error(CLASSES, output, x)
    np.testing.assert_allclose(error, -(q * log_px).sum(1), rtol=1e-5)
    kl = (q * (np.log(q) + np.log(4))).sum(1)
    np.testing.assert_allclose(output.kl[:, 0], kl, rtol=1e-4, atol=1e-6)
    small = log_px / 100  # whose exponentials are numbers
    marginal = mixture.marginal(output.class_logits, jnp.asarray(small))
    np.testing.assert_allclose(marginal, np.log(np.exp(small).mean(1)), rtol=1e-5)


def test_noise_is_the_classes_and_the_styles(classes):
    apply, x, noise, output = classes
    latents = apply(x, noise, method="encode")
    again = apply(3, 1.0, latents.noise, method="sample_prior")
    np.testing.assert_allclose(again, output.logits, rtol=1e-5, atol=1e-5)
    y = latents.values[0][:, 0, 0]
    np.testing.assert_array_equal(np.sort(latents.noise[0]), np.sort(noise[0]))
    likeliest = apply(x, [np.zeros_like(n) for n in noise], method="encode").values[0][:, 0, 0]
    np.testing.assert_array_equal(likeliest.argmax(1), output.class_logits.argmax(1))
    assert (y.sum(1) == 1).all()


def test_classes_are_drawn_by_their_probabilities():
    probabilities = np.asarray([0.5, 0.3, 0.15, 0.05])
    noise = jax.random.normal(jax.random.key(0), (20_000, 4))
    y = mixture.draw_class(jnp.log(probabilities), noise)
    # Four standard errors.
    np.testing.assert_allclose(y.mean(0), probabilities, atol=4 * 0.5 / 20_000**0.5)
