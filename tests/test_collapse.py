"""What codes say of images: closed forms, and a toy whose codes collapse under the ELBO alone."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from nvae_jax.evaluation.collapse import (
    active_units,
    code_information,
    draw_plane,
    linear_probe,
    principal_plane,
    prior_mmd,
)
from nvae_jax.model.distributions import Normal
from nvae_jax.objectives.mmd import info_vae_penalty, squared_mmd


def test_units_are_active_by_the_variance_of_their_means():
    # ±a around 5 has the variance a² · 4 / 3 of four images.
    sides = np.array([1.0, -1.0, 1.0, -1.0])[:, None]
    means = 5 + sides * np.sqrt(0.75 * np.array([0.0, 0.0099, 0.0101, 1.0]))
    np.testing.assert_array_equal(active_units(means), [False, False, True, True])
    np.testing.assert_array_equal(active_units(means, 0.5), [False, False, False, True])


def test_information_between_nothing_and_its_bound():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(64, 2)).astype("f")
    one = np.ones_like(noise)
    collapsed = code_information(0 * one, one, noise)
    for name in ("kl", "mutual_information", "total_correlation", "dimension_wise"):
        np.testing.assert_allclose(collapsed[name], 0, atol=1e-5)
    # Codes far apart: each image is known from its code.
    means = 100 * np.arange(64, dtype="f")[:, None] * one
    apart = code_information(means, one, means + noise)
    np.testing.assert_allclose(apart["mutual_information"], np.log(64), rtol=1e-4)
    np.testing.assert_allclose(apart["mutual_information_bound"], np.log(64), rtol=1e-6)
    # Each of two latents tells as much, so one of them is redundant.
    np.testing.assert_allclose(apart["total_correlation"], np.log(64), rtol=1e-2)
    np.testing.assert_allclose(apart["between_groups"], apart["total_correlation"], rtol=1e-6)
    # As a part of a larger set, they show as much as they can of that.
    part = code_information(means, one, means + noise, dataset_size=1000, groups=[2])
    np.testing.assert_allclose(part["mutual_information"], np.log(1000), rtol=1e-4)
    np.testing.assert_allclose(part["between_groups"], 0, atol=1e-2)


def test_discrepancy_from_the_prior():
    z = np.random.default_rng(1).normal(size=(300, 3)).astype("f")
    assert abs(prior_mmd(z)) < 0.05
    assert prior_mmd(z + 1) > 0.5
    assert prior_mmd(0.5 * z, "rbf") > 0.1


def test_the_principal_plane():
    # Two codes per axis of a rotated frame, at known distances from a mean that is not 0.
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    ends = np.concatenate([np.diag([3.0, 1.0, 0.1]), -np.diag([3.0, 1.0, 0.1])])
    mean = np.array([2.0, -1.0, 0.5])
    plane = principal_plane(ends @ rotation.T + mean)
    np.testing.assert_allclose(plane.variances, 2 * np.array([9, 1, 0.01]) / 5, rtol=1e-10)
    np.testing.assert_allclose(plane.axes.T @ plane.axes, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(np.abs(plane.axes.T @ rotation[:, :2]), np.eye(2), atol=1e-9)
    assert (plane.axes[np.abs(plane.axes).argmax(0), [0, 1]] > 0).all()
    # The plane goes through the prior's mean, so the codes' mean shows.
    np.testing.assert_allclose(plane.points.mean(0), mean @ plane.axes, atol=1e-12)
    spread = plane.points - plane.points.mean(0)
    np.testing.assert_allclose(np.abs(spread[:2]), np.diag([3.0, 1.0]), atol=1e-9)


def test_the_picture_shows_labels():
    plane = principal_plane(np.random.default_rng(0).normal(size=(40, 4)))
    plain, coloured = draw_plane(plane), draw_plane(plane, np.arange(40) % 3, "digits")
    chex.assert_equal_shape([plain, coloured])
    assert plain.min() >= 0
    assert plain.max() <= 1
    assert (plain != coloured).any()

    def has_colour(picture, red, green, blue):
        return (np.abs(255 * picture - [red, green, blue]).max(-1) < 2).any()

    assert has_colour(coloured, 44, 160, 44)  # the third label's
    assert not has_colour(plain, 44, 160, 44)


def test_a_probe_reads_labels_from_codes():
    rng = np.random.default_rng(0)
    labels = np.repeat([2, 5, 7], [20, 20, 60])
    noise = rng.normal(size=(100, 4))
    nothing = linear_probe(noise, labels)
    assert nothing.chance == 0.6
    assert nothing.accuracy < 0.7
    everything = linear_probe(noise + 20 * np.eye(8, 4)[labels % 4], labels)
    assert (everything.accuracy, everything.spread) == (1.0, 0.0)
    # Logistic regression on the digits' pixels is known to be right about 95 times of 100.
    pixels, digits = load_digits(return_X_y=True)
    assert 0.93 < linear_probe(pixels[:900], digits[:900], folds=3).accuracy < 0.99


@pytest.mark.parametrize("labels", [np.zeros(10, int), np.repeat([0, 1], [7, 3])])
def test_a_probe_needs_labels(labels):
    with pytest.raises(ValueError, match="allowed for 5 folds: 2 or more labels of 5 or more"):
        linear_probe(np.zeros((10, 2)), labels)


def train_toy(preference, scale, x):
    """A linear VAE, x ~ N(W z, I), whose decoder can do without z; returns q(z | x) and W."""
    latents = 2
    keys = jax.random.split(jax.random.key(0), 2)
    params = {
        "encoder": 0.3 * jax.random.normal(keys[0], (x.shape[1], latents)),
        "decoder": 0.3 * jax.random.normal(keys[1], (latents, x.shape[1])),
        "log_sigma": jnp.zeros(latents),
    }
    prior = Normal(jnp.zeros(latents), jnp.ones(latents))
    steps = 500
    optimizer = optax.adam(optax.cosine_decay_schedule(0.03, steps))

    def posterior(params):
        mean = x @ params["encoder"]
        return Normal(mean, jnp.broadcast_to(jnp.exp(params["log_sigma"]), mean.shape))

    def loss(params, key):
        noise, draws = jax.random.normal(key, (2, len(x), latents))
        q = posterior(params)
        z = q.sample(noise)
        reconstruction = 0.5 * jnp.square(x - z @ params["decoder"]).sum(1)
        discrepancy = squared_mmd(z, draws)
        penalty = info_vae_penalty(q.kl(prior).sum(1), discrepancy, preference, scale)
        return (reconstruction + penalty).mean()

    def update(carry, key):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, key), state)
        return (optax.apply_updates(params, updates), state), None

    start = params, optimizer.init(params)
    keys = jax.random.split(jax.random.key(1), steps)
    (params, _), _ = jax.jit(lambda carry: jax.lax.scan(update, carry, keys))(start)
    return posterior(params), params["decoder"]


def test_codes_collapse_under_the_elbo_and_not_under_mmd():
    # All variances of the data are below the likelihood's 1, so that the best linear VAE has W = 0
    # (probabilistic PCA; Lucas et al., arXiv 1911.02469).
    rng = np.random.default_rng(0)
    x = rng.normal(size=(96, 4)) * np.sqrt([0.7, 0.6, 0.05, 0.05])
    x = jnp.asarray(x - x.mean(0), jnp.float32)
    noise = rng.normal(size=(96, 2)).astype("f")

    def measure(preference, scale):
        posterior, decoder = train_toy(preference, scale, x)
        z = np.asarray(posterior.sample(noise))
        information = code_information(posterior.mean, posterior.sigma, z)
        return active_units(posterior.mean).sum(), information, prior_mmd(z), decoder

    units, information, mmd, decoder = measure(preference=0.0, scale=1.0)  # the ELBO
    assert units == 0
    assert information["mutual_information"] < 0.02
    assert abs(mmd) < 0.2
    np.testing.assert_allclose(decoder, 0, atol=0.1)

    units, information, mmd, decoder = measure(preference=1.0, scale=10.0)
    assert units == 2
    assert information["mutual_information"] > 1.5
    assert abs(mmd) < 0.2
    # and the decoder has found the two wide directions
    energy = np.square(decoder).sum(0)
    assert energy[:2].sum() > 0.95 * energy.sum()
