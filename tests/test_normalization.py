"""Batch normalisation against float64, and its statistics over a sharded batch."""

import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvae_jax.model.kernels.batch_norm import STATISTICS, _one_pass, _two_passes
from nvae_jax.model.normalization import BatchNorm
from nvae_jax.parallel import batch_sharding, make_mesh, replicated


def make(shape=(8, 3, 5, 4), seed=0):
    """Images far from standard, and variables in no special state."""
    rng = np.random.default_rng(seed)
    channels = shape[-1]
    x = rng.normal(5.0, 2.0, shape) * np.arange(1, channels + 1)
    values = rng.uniform(0.5, 2.0, (4, channels))
    names = [
        ("params", "scale"),
        ("params", "bias"),
        ("batch_stats", "mean"),
        ("batch_stats", "var"),
    ]
    variables = {"params": {}, "batch_stats": {}}
    for (collection, name), value in zip(names, values, strict=True):
        variables[collection][name] = jnp.asarray(value, jnp.float32)
    return x.astype(np.float32), variables


def normalize(x, variables, mean, var):
    params = variables["params"]
    return (x - mean) / (var + 1e-5) ** 0.5 * params["scale"] + params["bias"]


@jax.jit
def train(variables, x):
    return BatchNorm().apply(variables, x, True, mutable=["batch_stats"])


def test_training_normalises_by_the_biased_variance_and_keeps_the_unbiased_one():
    x, variables = make()
    y, updated = train(variables, x)
    x = x.astype(np.float64)
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    np.testing.assert_allclose(y, normalize(x, variables, mean, var), rtol=1e-4, atol=1e-5)
    before, after = variables["batch_stats"], updated["batch_stats"]
    unbiased = x.var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(after["mean"], 0.95 * before["mean"] + 0.05 * mean, rtol=1e-5)
    np.testing.assert_allclose(after["var"], 0.95 * before["var"] + 0.05 * unbiased, rtol=1e-5)


@pytest.mark.parametrize("activation", [jax.nn.identity, nn.swish, nn.elu])
def test_gradients_agree_with_automatic_differentiation(activation):
    x, variables = make()
    cotangent = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)

    def plain(params, x):
        moments = x.mean((0, 1, 2)), x.var((0, 1, 2))
        return activation(normalize(x, {"params": params}, *moments))

    def ours(params, x):
        return BatchNorm(activation).apply({**variables, "params": params}, x, True)

    @jax.jit
    def gradients(params, x):
        return [jax.vjp(function, params, x)[1](cotangent) for function in (ours, plain)]

    actual, expected = gradients(variables["params"], x)
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_backward_pass_keeps_the_input_alone(dtype):
    x, variables = make()
    _, vjp = jax.vjp(lambda x: BatchNorm(nn.swish).apply(variables, x, True), x.astype(dtype))
    (kept,) = [kept for kept in jax.tree.leaves(vjp) if kept.size == x.size]
    assert (kept.shape, kept.dtype) == (x.shape, dtype)


def test_copies_count_every_value_more_than_once():
    x, variables = make((2, 2, 2, 3))
    _, updated = BatchNorm().apply(variables, x, True, 4, mutable=["batch_stats"])
    _, expected = train(variables, x.repeat(2, axis=1).repeat(2, axis=2))
    chex.assert_trees_all_close(updated, expected, rtol=1e-5)


def test_variables_are_left_as_they_are():
    x, variables = make()
    variables = jax.tree.map(np.array, variables)  # as `import_state_dict` returns them
    before = jax.tree.map(np.copy, variables)
    BatchNorm().apply(variables, x, True, mutable=["batch_stats"])
    chex.assert_trees_all_equal(variables, before)


def test_evaluation_uses_the_running_statistics_alone():
    x, variables = make()
    stats = variables["batch_stats"]
    y, updated = BatchNorm(nn.swish).apply(variables, x, False, mutable=["batch_stats"])
    expected = nn.swish(normalize(x, variables, stats["mean"], stats["var"]))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_equal(updated["batch_stats"], stats)


def test_without_a_mutable_collection_training_normalises_by_the_batch():
    x, variables = make()
    y = BatchNorm().apply(variables, x, True)
    np.testing.assert_allclose(y, train(variables, x)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("is_training", [True, False])
def test_a_fresh_layer_has_neutral_parameters_and_statistics(is_training):
    x, _ = make()
    fresh = BatchNorm().init(jax.random.key(0), x, is_training)
    zeros, ones = jnp.zeros(4), jnp.ones(4)
    expected = {
        "params": {"scale": ones, "bias": zeros},
        "batch_stats": {"mean": zeros, "var": ones},
    }
    chex.assert_trees_all_equal(fresh, expected)


def test_statistics_are_those_of_the_global_batch():
    x, variables = make((16, 3, 5, 4))
    x += np.arange(16, dtype=np.float32)[:, None, None, None]  # every device has other statistics
    expected = train(variables, x)

    mesh = make_mesh()
    assert mesh.size == 8
    sharded = jax.device_put(x, batch_sharding(mesh))
    y, updated = train(jax.device_put(variables, replicated(mesh)), sharded)
    assert len(y.sharding.device_set) == 8
    chex.assert_trees_all_close((y, updated), expected, rtol=1e-5, atol=1e-5)


def test_bfloat16_is_normalised_in_float32():
    x, variables = make((8, 16, 16, 4))
    x += 200  # a large mean, which sums in bfloat16 would not carry
    y, updated = train(variables, x.astype(jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    expected, exact = train(variables, x.astype(jnp.bfloat16).astype(np.float32))
    np.testing.assert_allclose(y.astype(np.float32), expected, rtol=1e-2, atol=1e-2)
    chex.assert_trees_all_close(updated, exact, rtol=1e-6)


def test_bfloat16_is_activated_in_float32():
    x, variables = make((8, 16, 16, 4))
    y = BatchNorm(nn.swish).apply(variables, x.astype(jnp.bfloat16), True)
    wide = BatchNorm(nn.swish).apply(variables, x.astype(jnp.bfloat16).astype(np.float32), True)
    chex.assert_trees_all_close(y, wide.astype(jnp.bfloat16), rtol=1e-6)


def test_gradients_in_bfloat16_are_those_of_float32_rounded():
    x, variables = make((8, 16, 16, 4))
    cotangent = jnp.asarray(np.random.default_rng(1).normal(size=x.shape), jnp.bfloat16)
    x = jnp.asarray(x, jnp.bfloat16)

    def gradients(dtype):
        def layer(params, x):
            return BatchNorm(nn.swish).apply({**variables, "params": params}, x, True)

        _, vjp = jax.vjp(layer, variables["params"], x.astype(dtype))
        return vjp(cotangent.astype(dtype))

    rounded, exact = gradients(jnp.bfloat16), gradients(jnp.float32)
    assert rounded[1].dtype == jnp.bfloat16
    for ours, expected in zip(jax.tree.leaves(rounded), jax.tree.leaves(exact), strict=True):
        assert jnp.linalg.norm(ours - expected) < 1e-2 * jnp.linalg.norm(expected)


@pytest.mark.parametrize("away", [0.0, 3.0])
def test_moments_in_one_pass_are_those_of_two(away):
    rng = np.random.default_rng(0)
    x = rng.normal(100.0, 2.0, (8, 16, 16, 3)).astype(np.float32)
    near_mean = np.full(3, 100 + 2 * away, np.float32)
    exact = x.astype(np.float64)
    for moments in (_one_pass, _two_passes):
        mean, var = moments(jnp.asarray(x), near_mean)
        np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-6)
        np.testing.assert_allclose(var, exact.var((0, 1, 2)), rtol=2e-5)


def test_recomputation_keeps_the_statistics():
    x, variables = make()

    def sums_over_the_batch(policy):
        run = jax.checkpoint(
            lambda x: jnp.sin(BatchNorm().apply(variables, x, True)), policy=policy
        )
        text = str(jax.make_jaxpr(jax.grad(lambda x: run(x).sum()))(x))
        return len(re.findall(r"reduce_sum\[\s*axes=\(0, 1, 2\)", text))

    keep = jax.checkpoint_policies.save_only_these_names(STATISTICS)
    # Two moments by either of two platforms' rules, and two sums of the gradient.
    assert sums_over_the_batch(keep) == 4 + 2
    assert sums_over_the_batch(None) == 4 + 4 + 2
