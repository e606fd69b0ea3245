"""The matrices of the regularisers, the penalty of the batch norms, and what both keep to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from layers import LAMBDA, is_near, make_params, products, zeros_like

from nvae_jax.model.nvae import effective_kernels
from nvae_jax.training.regularizers import (
    batch_norm_penalty,
    batch_norm_regularization,
    spectral_regularization,
)


@pytest.fixture(scope="module")
def params():
    return make_params()


def test_the_matrices_are_the_convolutions_and_nothing_else(params):
    stacks = {name: matrices.shape for name, matrices in products(params).items()}
    assert stacks == {
        "27x8": (1, 27, 8),  # encoder/stem
        "8x24": (1, 8, 24),  # encoder/cell/expand
        "25x24": (1, 25, 24),  # encoder/cell/spatial
        "10x8": (3, 10, 8),  # decoder/scale_0/combine
        # decoder/scale_0/flow_0, forward and mirrored
        "18x12": (6, 18, 12),
        "25x12": (6, 25, 12),
        "12x2": (6, 12, 2),
    }
    forward = params["decoder"]["scale_0"]["flow_0"]["forward"]["head"]["kernel"]
    assert forward.shape == (3, 1, 1, 12, 2)
    scaled = jax.tree.map(lambda x: x, params)
    scaled["decoder"]["scale_0"]["flow_0"]["forward"]["head"]["log_gain"] += jnp.log(2.0)
    before, after = (products(p)["12x2"] for p in (params, scaled))
    np.testing.assert_allclose(after[:3], 2 * before[:3], rtol=1e-6)
    np.testing.assert_array_equal(after[3:], before[3:])


def test_stacks_have_the_order_of_the_tree_of_parameters():
    # Saved singular vectors go by it.
    kernels = jax.random.normal(jax.random.key(0), (3, 3, 1, 1, 2, 2))
    names = ("scale_2_up", "scale_10", "scale_2")  # which the tree sorts
    params = {
        name: {"conv": {"kernel": kernel}} for name, kernel in zip(names, kernels, strict=True)
    }
    (stack,) = products(params).values()
    leaves = jnp.concatenate([x.reshape(-1, 2, 2) for x in jax.tree.leaves(params)])
    np.testing.assert_array_equal(stack, leaves)


def test_a_flows_masks_are_part_of_its_matrices(params):
    # Mirrored in space, and strict where they must be.
    kernels = effective_kernels(params)["decoder"]["scale_0"]["flow_0"]
    forward, mirrored = (kernels[cell]["strict_conv"] for cell in ("forward", "mirrored"))
    assert (forward[:, 2] == 0).all()
    assert (forward[:, 1, 2] == 0).all()
    assert (mirrored[:, 0] == 0).all()
    assert (mirrored[:, 1, 0] == 0).all()
    assert (kernels["forward"]["depthwise_conv"][:, 2, 2] != 0).all()


def test_weight_norm_enters_the_matrices(params):
    stem = params["encoder"]["stem"]
    scaled = {"stem": stem | {"kernel": 7 * stem["kernel"]}}
    is_near(products(scaled), products({"stem": stem}), 1e-5)
    louder = {"stem": stem | {"log_gain": stem["log_gain"] + jnp.log(2.0)}}
    doubled = jax.tree.map(lambda m: 2 * m, products({"stem": stem}))
    is_near(products(louder), doubled)


def test_batch_norm_penalty_is_the_largest_scale_of_every_layer(params):
    scales = [params["encoder"]["cell"][name]["scale"] for name in ("norm_in", "norm_out")]
    scales += list(params["decoder"]["scale_0"]["norm"]["scale"])
    expected = sum(np.abs(scale).max() for scale in scales)
    np.testing.assert_allclose(batch_norm_penalty(params), expected, rtol=1e-6)
    assert batch_norm_penalty({"conv": {"kernel": jnp.ones((1, 1, 2, 2))}}) == 0


def test_batch_norm_regularization_adds_its_gradient(params):
    transform = batch_norm_regularization()
    gradient = jax.tree.map(jnp.sin, params)
    update = jax.jit(functools.partial(transform.update, regularization=LAMBDA))
    updates, state = update(gradient, transform.init(params), params)
    np.testing.assert_allclose(state.penalty, batch_norm_penalty(params), rtol=1e-6)
    added = jax.tree.map(jnp.subtract, updates, gradient)
    stacked = params["decoder"]["scale_0"]["norm"]["scale"]
    largest = np.abs(stacked) == np.abs(stacked).max(-1, keepdims=True)
    expected = zeros_like(params)
    expected["decoder"]["scale_0"]["norm"]["scale"] = LAMBDA * np.sign(stacked) * largest
    for name in ("norm_in", "norm_out"):
        scale = params["encoder"]["cell"][name]["scale"]
        peak = np.abs(scale) == np.abs(scale).max()
        expected["encoder"]["cell"][name]["scale"] = LAMBDA * np.sign(scale) * peak
    is_near(added, expected)


def test_tied_scales_share_the_gradient():
    """At the start all scales are 1; each of n gets 1/n."""
    params = {"norm": {"scale": jnp.array([1.0, -1.0, 0.5, 1.0]), "bias": jnp.zeros(4)}}
    updates, _ = batch_norm_regularization().update(
        zeros_like(params), None, params, regularization=3.0
    )
    np.testing.assert_allclose(updates["norm"]["scale"], [1.0, -1.0, 0.0, 1.0], rtol=1e-6)
    np.testing.assert_array_equal(updates["norm"]["bias"], 0)


@pytest.mark.parametrize(
    "make", [lambda: spectral_regularization(jax.random.key(0)), batch_norm_regularization]
)
def test_contract(params, make):
    """One compilation for all steps and weights; dtypes and structure stay; state is donated."""
    transform = make()
    traces = []

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, regularization):
        traces.append(1)
        zeros = zeros_like(params)
        updates, state = transform.update(zeros, state, params, regularization=regularization)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.copy, params)
    state = jax.jit(transform.init)(params)
    structure = jax.tree.map(lambda x: (x.shape, x.dtype), (params, state))
    for weight in (0.1, 0.2, 0.3):
        previous = params
        params, state = step(params, state, jnp.float32(weight))
        assert jax.tree.leaves(previous)[0].is_deleted()
    assert len(traces) == 1
    assert jax.tree.map(lambda x: (x.shape, x.dtype), (params, state)) == structure
