"""IntroVAE's losses of a linear model by hand, and which parameters each of them moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvae_jax.objectives.introspective import (
    Energies,
    encoder_loss,
    generator_loss,
    introspect,
)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


WEIGHTS = {"adversarial": 0.25, "reconstruction_weight": 0.5}
MARGIN = 2.0


def encode(encoder, x):
    """z = a x with variance 1, so that KL = (a x)² / 2; the draw is the mean."""
    z = encoder * x
    return z, 0.5 * jnp.square(z).sum(1)


def decode(decoder, z):
    """x = b z."""
    return decoder * z


def losses(params, x, prior, turn):
    energies, images = introspect(encode, decode, *params, x, prior, turn)
    reconstruction = jnp.square(x - images).sum(1)
    if turn == "encoder":
        return encoder_loss(energies, reconstruction, MARGIN, **WEIGHTS)
    return generator_loss(energies, reconstruction, **WEIGHTS)


A, B = 0.8, 1.5
X = np.array([[1.0], [-3.0]])
PRIOR = np.array([[0.5], [2.0]])


def test_the_losses_by_hand():
    actual = [losses((A, B), X, PRIOR, turn) for turn in ("encoder", "generator")]
    # Energies: real (0.8 x)²/2, reconstructed (0.8·1.2 x)²/2, sampled (0.8·1.5 z)²/2.
    real = [0.32, 2.88]
    reconstructed = [0.4608, 4.1472]
    sampled = [0.18, 2.88]
    error = [0.04, 0.36]  # (x − 1.2 x)²
    hinges = [(2 - 0.4608) + (2 - 0.18), 0.0]
    encoder = [r + 0.25 * h + 0.5 * e for r, h, e in zip(real, hinges, error, strict=True)]
    generator = [
        0.25 * (r + s) + 0.5 * e for r, s, e in zip(reconstructed, sampled, error, strict=True)
    ]
    np.testing.assert_allclose(actual, [np.mean(encoder), np.mean(generator)], rtol=1e-12)


def test_each_turn_moves_only_its_own_parameters_by_the_slopes_of_the_paper():
    of_encoder = jax.grad(losses)((A, B), X, PRIOR, "encoder")
    of_generator = jax.grad(losses)((A, B), X, PRIOR, "generator")
    assert of_encoder[1] == 0.0
    assert of_generator[0] == 0.0
    # ∂/∂a of the encoder's loss with the images r = b a x and s = b z held: only image 0 is within
    # the margin.
    x, z = X[:, 0], PRIOR[:, 0]
    r, s = B * A * x, B * z
    inside = np.array([1.0, 0.0])
    slope = A * x**2 - 0.25 * inside * A * (r**2 + s**2) - (x - A * B * x) * B * x
    np.testing.assert_allclose(of_encoder[0], slope.mean(), rtol=1e-12)
    # ∂/∂b of the generator's, through the encoder to the images: KL = (a b z)² / 2.
    slope = 0.25 * B * A**2 * ((A * x) ** 2 + z**2) - (x - A * B * x) * A * x
    np.testing.assert_allclose(of_generator[1], slope.mean(), rtol=1e-12)


def test_beyond_the_margin_images_no_longer_count():
    near, far = (
        Energies(jnp.ones(3), jnp.full(3, energy), jnp.full(3, energy)) for energy in (1.0, 9.0)
    )
    nothing = jnp.zeros(3)
    slope = jax.grad(encoder_loss)
    np.testing.assert_allclose(slope(near, nothing, MARGIN, **WEIGHTS).sampled, -0.25 / 3)
    np.testing.assert_array_equal(slope(far, nothing, MARGIN, **WEIGHTS).sampled, 0)
    np.testing.assert_allclose(encoder_loss(far, nothing, MARGIN, **WEIGHTS), 1.0)


@pytest.mark.parametrize("kind", ["reconstructed", "sampled"])
def test_the_turns_pull_at_opposite_ends(kind):
    energies = Energies(jnp.ones(3), jnp.ones(3), jnp.ones(3))
    down = jax.grad(encoder_loss)(energies, jnp.zeros(3), MARGIN, **WEIGHTS)
    up = jax.grad(generator_loss)(energies, jnp.zeros(3), **WEIGHTS)
    np.testing.assert_array_equal(getattr(down, kind), -getattr(up, kind))
