"""The train step in parts of a batch, and of a model with one group of latents."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_step import EPOCH_STEPS, ONE_GROUP, TRAINING, adamax, distance, make_images, make_state

from nvae_jax.model import NVAE
from nvae_jax.objectives.elbo import balance_targets, elbo_terms
from nvae_jax.parallel import make_mesh, replicated, shard_batch
from nvae_jax.training.optimizer import make_optimizer
from nvae_jax.training.schedules import kl_weight
from nvae_jax.training.step import make_train_step, mean_over_parts


@pytest.fixture(scope="module")
def images():
    return make_images()


@pytest.fixture(scope="module")
def one_group_step():
    return jax.jit(make_train_step(ONE_GROUP, TRAINING, EPOCH_STEPS))


def test_parts_of_a_batch_make_the_update_of_their_mean_gradient(images):
    """As if the parts' gradients had been computed on their own, and Adamax had seen the mean."""
    training = dataclasses.replace(TRAINING, accumulation_steps=2)
    config = dataclasses.replace(ONE_GROUP, unroll=False)
    state = make_state(ONE_GROUP)
    mesh = make_mesh(jax.devices()[:2])
    step = make_train_step(config, training, EPOCH_STEPS, mesh)
    after, metrics = jax.jit(step)(
        jax.device_put(state, replicated(mesh)), shard_batch(mesh, images)
    )
    after, metrics = jax.device_get((after, metrics))

    beta = kl_weight(0, EPOCH_STEPS * TRAINING.epochs, TRAINING.kl_warmup, TRAINING.kl_constant)
    targets = balance_targets(config, TRAINING.kl_balance)

    @jax.jit
    def part(x, key):
        def loss(params):
            variables = {"params": params, "batch_stats": state.batch_stats}
            output, new = NVAE(config).apply(
                variables, x, train=True, rngs={"sample": key}, mutable=["batch_stats"]
            )
            terms = elbo_terms(config, output, x, beta, targets)
            return terms.loss, (new["batch_stats"], terms.nelbo.mean())

        return jax.grad(loss, has_aux=True)(state.params)

    key = jax.random.fold_in(jax.random.key(TRAINING.seed), 0)
    parts = [part(images[i::2], jax.random.fold_in(key, i)) for i in range(2)]
    gradient, (statistics, nelbo) = jax.tree.map(lambda a, b: (a + b) / 2, *parts)
    assert metrics["nelbo"] == pytest.approx(float(nelbo), rel=1e-6)
    assert metrics["gradient_norm"] == pytest.approx(float(optax.tree.norm(gradient)), rel=1e-5)
    assert distance(after.batch_stats, statistics) < 1e-6
    optimizer = make_optimizer(TRAINING, EPOCH_STEPS)
    _, opt_state = jax.jit(functools.partial(optimizer.update, regularization=1.0))(
        gradient, state.opt_state, state.params
    )
    expected = opt_state["adamax"]
    assert distance(adamax(after).mu, expected.mu) < 1e-5


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_mean_over_parts_of_a_mean_is_the_mean(parts):
    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    result = mean_over_parts(
        lambda x, key: {"mean": x.mean(0), "count": jnp.int32(len(x))},
        x,
        jax.random.key(0),
        parts,
        1,
    )
    np.testing.assert_allclose(result["mean"], x.mean(0), rtol=1e-6)
    assert result["count"] == 8 // parts


def test_parts_of_a_batch_draw_their_own_noise():
    draw = functools.partial(mean_over_parts, lambda x, key: jax.random.normal(key), np.zeros(4))
    keys = [jax.random.fold_in(jax.random.key(7), i) for i in range(2)]
    expected = (jax.random.normal(keys[0]) + jax.random.normal(keys[1])) / 2
    assert draw(jax.random.key(7), 2, 0) == pytest.approx(float(expected), rel=1e-6)


def test_the_seed_decides_the_update(one_group_step, images):
    state = make_state(ONE_GROUP)
    first, again = one_group_step(state, images), one_group_step(state, images)
    chex.assert_trees_all_equal(first, again)

    _, other = one_group_step(state.replace(seed=jnp.uint32(1)), images)
    assert other["reconstruction"] != pytest.approx(float(first[1]["reconstruction"]), rel=1e-5)


def test_every_step_draws_anew(one_group_step, images):
    state = make_state(ONE_GROUP)
    _, first = one_group_step(state, images)
    _, second = one_group_step(state.replace(step=jnp.int32(1)), images)
    assert first["reconstruction"] != second["reconstruction"]


def test_only_the_unused_start_of_a_one_group_decoder_stays(one_group_step, images):
    before = state = make_state(ONE_GROUP)
    for _ in range(2):
        state, _ = one_group_step(state, images)
    moved = jax.tree.map(lambda old, new: bool((old != new).all()), before.params, state.params)
    start = moved["decoder"].pop("prior_features")
    assert not start
    np.testing.assert_array_equal(
        state.params["decoder"]["prior_features"], before.params["decoder"]["prior_features"]
    )
    assert all(jax.tree.leaves(moved))
