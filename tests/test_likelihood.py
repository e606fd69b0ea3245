import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIG, random_variables

from nvae_jax.data.sources import data_config
from nvae_jax.evaluation.likelihood import (
    importance_weighted_bound,
    make_image_likelihood,
    make_validation,
)
from nvae_jax.evaluation.trained import image_keys
from nvae_jax.model import NVAE, variable_shapes
from nvae_jax.model.distributions import log_likelihood
from nvae_jax.model.folding import fold
from nvae_jax.parallel import make_mesh


@pytest.fixture(scope="module")
def dataset():
    digits = data_config("digits").open()
    return dataclasses.replace(digits, test=digits.test[:19])


@pytest.fixture(scope="module")
def variables():
    return random_variables(CONFIG)


def test_mean_over_a_ragged_split_is_that_of_its_images(dataset, variables):
    mesh = make_mesh(jax.devices()[:1])
    means = make_validation(CONFIG, dataset.test, 8, mesh)(variables)

    @jax.jit
    def score(x, key):
        output = NVAE(CONFIG).apply(variables, x, train=False, rngs={"sample": key})
        return log_likelihood(CONFIG, output.logits, x), output.kl

    total, groups = 0.0, np.zeros(2)
    for number, start in enumerate(range(0, 19, 8)):
        # The last batch repeats the last image, so that the noise has the shape it had.
        index = np.minimum(np.arange(start, start + 8), 18)
        x = CONFIG.image.evaluation_pixels(jnp.asarray(dataset.test[index]), jnp.asarray(index))
        key = jax.random.fold_in(jax.random.key(0), number)
        log_px, kl = score(x, key)
        real = slice(0, min(8, 19 - start))
        total -= float(log_px[real].sum())
        groups += np.asarray(kl[real].sum(0))
    np.testing.assert_allclose(means["reconstruction"], total / 19, rtol=1e-5)
    np.testing.assert_allclose(means["group_kl"], groups / 19, rtol=1e-5)
    np.testing.assert_allclose(means["kl"], groups.sum() / 19, rtol=1e-5)
    np.testing.assert_allclose(means["nelbo"], (total + groups.sum()) / 19, rtol=1e-5)


def test_one_device_and_eight_agree(dataset, variables):
    one = make_validation(CONFIG, dataset.test, 8, make_mesh(jax.devices()[:1]))(variables)
    eight = make_validation(CONFIG, dataset.test, 8, make_mesh())(variables)
    for name, value in one.items():
        np.testing.assert_allclose(eight[name], value, rtol=1e-5, err_msg=name)


def toy_draws(x, slope, spread, a, b):
    """Log weights of z ~ N(0, 1), x | z ~ N(slope z, spread²) by draws from N(a x, b²)."""

    def log_normal(value, mean, sigma):
        return -0.5 * ((value - mean) / sigma) ** 2 - jnp.log(sigma) - 0.5 * jnp.log(2 * jnp.pi)

    def draw(numbers):
        key = jax.random.key(0)
        noise = jax.vmap(lambda n: jax.random.normal(jax.random.fold_in(key, n), x.shape))(numbers)
        z = a * x + b * noise
        log_p = log_normal(z, 0.0, 1.0) + log_normal(x, slope * z, spread)
        return log_p - log_normal(z, a * x, b), {"z": z}

    return draw


def test_bound_of_a_linear_gaussian_model_converges_to_its_likelihood():
    slope, spread = 1.5, 0.7
    x = jnp.linspace(-3, 3, 301)
    variance = slope**2 + spread**2
    exact = -0.5 * x**2 / variance - 0.5 * jnp.log(2 * jnp.pi * variance)
    # Not the true posterior, whose mean is slope x / variance.
    draw = toy_draws(x, slope, spread, a=0.4, b=0.6)
    counts = (1, 10, 100, 1000, 20_000)
    estimate = jax.jit(lambda: importance_weighted_bound(draw, counts, 64))()
    error = np.abs(np.asarray(exact - estimate.bounds)).mean(1)
    assert (np.diff(error[:3]) < 0).all()
    assert (error[2:] < 0.005).all()  # of which most is the scatter of 20,000 draws
    # Every number of draws divides the next one: no bound falls, whatever the draws are.
    assert (np.diff(estimate.bounds, axis=0) > -1e-5).all()
    np.testing.assert_allclose(estimate.bounds[0], estimate.elbo, rtol=1e-5)
    np.testing.assert_allclose(estimate.means["z"], 0.4 * x, atol=0.02)


def test_with_the_true_posterior_one_draw_is_enough():
    slope, spread = 1.5, 0.7
    x = jnp.linspace(-3, 3, 7)
    variance = slope**2 + spread**2
    exact = -0.5 * x**2 / variance - 0.5 * jnp.log(2 * jnp.pi * variance)
    draw = toy_draws(x, slope, spread, a=slope / variance, b=spread / np.sqrt(variance))
    estimate = importance_weighted_bound(draw, (1, 5))
    np.testing.assert_allclose(estimate.bounds, jnp.stack([exact, exact]), rtol=1e-5)


def test_draws_at_once_change_nothing():
    draw = toy_draws(jnp.linspace(-3, 3, 5), 1.0, 1.0, 0.3, 0.9)
    numbers = jnp.arange(7)
    log_weights = np.asarray(draw(numbers)[0])
    direct = np.logaddexp.reduce(log_weights) - np.log(7)
    for at_once in (1, 3, 7, 20):
        bound = jax.jit(importance_weighted_bound, static_argnums=(0, 1, 2))
        estimate = bound(draw, (2, 7), at_once)
        np.testing.assert_allclose(estimate.bounds[1], direct, rtol=1e-5)
        np.testing.assert_allclose(estimate.elbo, log_weights.mean(0), rtol=1e-5)
        # The three pairs of draws; the last draw has no partner.
        pairs = np.logaddexp(log_weights[:6:2], log_weights[1:6:2]) - np.log(2)
        np.testing.assert_allclose(estimate.bounds[0], pairs.mean(0), rtol=1e-5)


@pytest.mark.parametrize(("counts", "at_once"), [((), 1), ((0, 2), 1), ((3, 2), 1), ((2,), 0)])
def test_impossible_numbers_of_draws_are_refused(counts, at_once):
    with pytest.raises(ValueError, match="counts are"):
        importance_weighted_bound(lambda numbers: (numbers, ()), counts, at_once)


def test_likelihood_of_images_is_that_of_the_model(variables):
    rng = np.random.default_rng(0)
    x = jnp.float32(rng.integers(2, size=(2, *CONFIG.image_shape)))
    index = jnp.arange(2) + 5
    score = jax.jit(make_image_likelihood(CONFIG, (1, 3), draws_at_once=2, seed=4))
    scores = score(fold(CONFIG, variables), x, index)

    @jax.jit
    def one_draw(number):
        output = NVAE(CONFIG).apply(variables, x, False, image_keys(4, index, number))
        log_px = log_likelihood(CONFIG, output.logits, x)
        return log_px + output.log_p - output.log_q, log_px, output.kl

    log_weights, log_px, kl = (
        np.stack(part) for part in zip(*map(one_draw, range(3)), strict=True)
    )
    bounds = np.stack([log_weights.mean(0), np.logaddexp.reduce(log_weights) - np.log(3)])
    np.testing.assert_allclose(scores["bounds"], -bounds.T, rtol=1e-5)
    np.testing.assert_allclose(scores["reconstruction"], -log_px.mean(0), rtol=1e-5)
    np.testing.assert_allclose(scores["kl_per_channel"].sum(-1), kl.mean(0), rtol=1e-4)
    np.testing.assert_allclose(scores["sampled_nelbo"], -log_weights.mean(0), rtol=1e-5)


def test_memory_does_not_grow_with_the_draws():
    config = dataclasses.replace(CONFIG, image_shape=(8, 8, 1), num_blocks=0, unroll=False)
    x, index = jnp.zeros((1, *config.image_shape)), jnp.zeros(1, int)

    def bytes_of(draws):
        score = jax.jit(make_image_likelihood(config, (draws,), draws_at_once=10))
        variables = jax.eval_shape(functools.partial(fold, config), variable_shapes(config))
        memory = score.lower(variables, x, index).compile().memory_analysis()
        return memory.temp_size_in_bytes, memory.output_size_in_bytes

    assert bytes_of(1000) == bytes_of(50)
