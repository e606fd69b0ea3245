"""Flows: the official implementation's numbers, and Jacobians as volumes and raster order say."""

import math
import re

import chex
import goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from nvae_jax.interop.layout import flow_cell_entries
from nvae_jax.model import ModelConfig, variable_shapes
from nvae_jax.model.convolution import Conv, effective_kernel
from nvae_jax.model.flows import (
    FlowCell,
    FlowPair,
    MaskedConv,
    causal_mask,
    kernel_mask,
    mixture_logistic_transform,
    split_mixture_parameters,
)

KINDS = ("shift", "mixture_logistic")
MASKS = goldens.under("standalone", "mask")


def test_masks_agree_with_the_official_ones():
    assert len(MASKS) > 100
    for name, mask in MASKS.items():
        *_, strict, mirrored = map(int, re.findall(r"\d+", name))
        mask = mask.transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(causal_mask(mask.shape, strict, mirrored), mask, name)


@pytest.mark.parametrize("i", range(6))
def test_masked_convolution_agrees_with_the_official_one(i):
    arrays = goldens.under("standalone", f"arconv/{i}")
    settings = goldens.from_json(arrays["settings"])
    conv = MaskedConv(
        settings["c_out"],
        settings["k"],
        groups=settings["groups"],
        strict=settings["zero_diag"],
        mirrored=settings["mirror"],
    )
    params = goldens.conv_params(arrays, "sd/")
    y = jax.jit(conv.apply)({"params": params}, goldens.nhwc(arrays["x"]))
    goldens.assert_close(y, goldens.nhwc(arrays["y"]))
    kernel = effective_kernel(params, conv.kernel_mask(params["kernel"].shape))
    goldens.assert_close(kernel, arrays["weight_normalized"].transpose(2, 3, 1, 0))


@pytest.mark.parametrize("mirrored", [False, True])
def test_cell_agrees_with_the_official_one(mirrored):
    prefix = f"cellar/mirror{int(mirrored)}"
    arrays = goldens.under("standalone", prefix)
    entries = flow_cell_entries("", (), None)
    variables = goldens.variables(entries, goldens.under("standalone", f"{prefix}/sd"))
    z, log_det = jax.jit(FlowCell("shift", mirrored).apply)(variables, goldens.nhwc(arrays["z"]))
    goldens.assert_close(z, goldens.nhwc(arrays["new_z"]))
    np.testing.assert_array_equal(log_det, goldens.nhwc(arrays["log_det"]))


def test_pair_agrees_with_the_official_one():
    arrays = goldens.under("standalone", "pairedcellar")
    entries = [
        entry
        for official, ours in (("cell1", "forward"), ("cell2", "mirrored"))
        for entry in flow_cell_entries(official, (ours,), None)
    ]
    variables = goldens.variables(entries, goldens.under("standalone", "pairedcellar/sd"))
    z, log_det = jax.jit(FlowPair("shift").apply)(variables, goldens.nhwc(arrays["z"]))
    goldens.assert_close(z, goldens.nhwc(arrays["new_z"]))
    np.testing.assert_array_equal(log_det, goldens.nhwc(arrays["log_det"]))


def components_last(array):
    """(B, Z, K, H, W) → (B, H, W, Z, K)."""
    return array.transpose(0, 3, 4, 1, 2)


def mixture_parameters(arrays):
    logits, means, log_scales, log_a, b = (
        components_last(arrays[name]) for name in ("logit_pi", "mu", "log_s", "log_a", "b")
    )
    return logits, means, log_scales, log_a[..., 0], b[..., 0]


def test_mixture_logistic_transform_agrees_with_the_official_one():
    arrays = goldens.under("standalone", "mixlogcdf")
    z, parameters = goldens.nhwc(arrays["z"]), mixture_parameters(arrays)

    @jax.jit
    def transform_and_slope(z):
        # Every latent is transformed by itself: the gradient of the sum is each one's slope.
        slope = jax.grad(lambda z: mixture_logistic_transform(z, *parameters)[0].sum())(z)
        return *mixture_logistic_transform(z, *parameters), slope

    new_z, log_det, slope = transform_and_slope(z)
    goldens.assert_close(new_z, goldens.nhwc(arrays["new_z"]))
    goldens.assert_close(log_det, goldens.nhwc(arrays["log_det"]))
    for name in ("log_det_f64", "log_det_from_autograd_f64"):
        goldens.assert_close(log_det, goldens.nhwc(arrays[name]))
    goldens.assert_close(jnp.log(slope), log_det, goldens.GRADIENTS)


def test_mixture_logistic_transform_is_finite_far_out():
    z = jnp.array([-1e3, -50.0, 0.0, 50.0, 1e3]).reshape(1, 1, 1, 5)
    logits = means = jnp.zeros((1, 1, 1, 5, 3))
    new_z, log_det = mixture_logistic_transform(
        z, logits, means, jnp.full_like(means, -7.0), jnp.zeros_like(z), jnp.zeros_like(z)
    )
    # With equal logistics the transform is (z − mu) / s.
    np.testing.assert_allclose(new_z, z * math.exp(7.0), rtol=1e-5)
    np.testing.assert_allclose(log_det, 7.0, rtol=1e-3)


def test_head_of_the_mixture_agrees_with_the_official_one():
    arrays = goldens.under("standalone", "mixlogcdf_head")
    params = goldens.conv_params(arrays, "sd/conv.conv_0.")
    head = MaskedConv(48, log_gain_shift=math.log(10))
    x = jax.jit(head.apply)({"params": params}, nn.elu(goldens.nhwc(arrays["ftr"])))
    for ours, official in zip(
        split_mixture_parameters(x, 4), mixture_parameters(arrays), strict=True
    ):
        goldens.assert_close(ours, official)


def test_scales_of_the_mixture_are_bounded():
    _, _, log_scales, _, _ = split_mixture_parameters(jnp.full((1, 1, 1, 24), -20.0), 2)
    np.testing.assert_array_equal(log_scales, -7.0)


def strong_variables(flow, z):
    """Parameters with which latents depend on their past a lot, unlike in a fresh flow."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(flow.init, jax.random.key(0), z)
    return jax.tree.map(lambda s: rng.normal(0.0, 0.5, s.shape).astype(s.dtype), shapes)


def jacobian(flow, z):
    """dz' / dz at z (H, W, Z), with twice the axes of z, and the log-determinants there."""
    variables = strong_variables(flow, z[None])

    def compute(z):
        new_z, log_det = flow.apply(variables, z[None])
        return new_z[0], log_det[0]

    matrix, log_det = jax.jit(jax.jacrev(compute, has_aux=True))(z)
    return np.asarray(matrix), np.asarray(log_det)


Z = np.random.default_rng(1).normal(size=(3, 4, 2)).astype(np.float32)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_jacobian_of_a_cell_is_triangular(kind, mirrored):
    matrix, log_det = jacobian(FlowCell(kind, mirrored), Z)
    if mirrored:
        # The raster runs backwards, but the latents of a pixel keep their order.
        matrix, log_det = matrix[::-1, ::-1, :, ::-1, ::-1, :], log_det[::-1, ::-1]
    matrix = matrix.reshape(Z.size, Z.size)
    np.testing.assert_array_equal(np.triu(matrix, 1), 0.0)
    np.testing.assert_allclose(np.log(np.diag(matrix)), log_det.ravel(), atol=1e-4)
    # Within its reach a latent does see its past: the row above, the left, the latent before it.
    matrix = matrix.reshape(2 * Z.shape)
    assert np.all(matrix[1, 1, :, 0, 0] != 0)
    assert np.all(matrix[1, 1, :, 0, 2] != 0)
    assert np.all(matrix[1, 1, :, 1, 0] != 0)
    assert matrix[1, 1, 1, 1, 1, 0] != 0


@pytest.mark.parametrize("kind", KINDS)
def test_log_determinant_of_a_pair(kind):
    matrix, log_det = jacobian(FlowPair(kind), Z)
    matrix = matrix.reshape(Z.size, Z.size)
    sign, expected = np.linalg.slogdet(np.float64(matrix))
    assert sign == 1
    np.testing.assert_allclose(log_det.sum(), expected, atol=1e-3)
    # The two orders together let the past and the future in.
    assert np.abs(np.triu(matrix, 1)).max() > 0.1
    assert np.abs(np.tril(matrix, -1)).max() > 0.1
    assert (abs(expected) < 1e-3) == (kind == "shift")  # a shift preserves volume


@pytest.mark.parametrize(("kind", "outputs"), [("shift", 2), ("mixture_logistic", 24)])
def test_parameters_of_a_fresh_cell(kind, outputs):
    params = jax.jit(FlowCell(kind, False).init)(jax.random.key(0), Z[None])["params"]
    shapes = jax.tree.map(np.shape, params, is_leaf=lambda x: isinstance(x, jax.Array))
    assert shapes == {
        "strict_conv": {"kernel": (3, 3, 2, 12), "log_gain": (12,)},
        "depthwise_conv": {"kernel": (5, 5, 1, 12), "log_gain": (12,)},
        "head": {"kernel": (1, 1, 12, outputs), "log_gain": (outputs,), "bias": (outputs,)},
    }
    # The gain is that of the masked kernel, and the last one starts lower.
    for name, shift in (("strict_conv", 0.0), ("depthwise_conv", 0.0), ("head", math.log(10))):
        kernel = params[name]["kernel"]
        masked = kernel * causal_mask(kernel.shape, name == "strict_conv", mirrored=False)
        norm = np.sqrt(np.square(masked).sum((0, 1, 2)))
        np.testing.assert_allclose(
            params[name]["log_gain"], np.log(norm + 1e-2) - shift, rtol=1e-4, atol=1e-5
        )


def test_paths_tell_the_masks_of_all_convolutions_of_a_model():
    config = ModelConfig(
        image_shape=(8, 8, 3), num_scales=2, num_groups=3, num_flows=2, architecture="res_bnswish"
    )
    masks = {}

    def record(call, args, kwargs, context):
        result = call(*args, **kwargs)
        if isinstance(context.module, Conv) and context.method_name == "__call__":
            shape = context.module.get_variable("params", "kernel").shape
            masks[context.module.path] = (shape, context.module.kernel_mask(shape))
        return result

    with nn.intercept_methods(record):
        variable_shapes(config)
    for path, (shape, mask) in masks.items():
        chex.assert_trees_all_equal(kernel_mask(path, shape), mask)
        if mask is not None:  # stacks of kernels share theirs
            chex.assert_trees_all_equal(kernel_mask(path, (7, *shape)), mask)
    # In the first group and in each scale's stack: two pairs of two cells of three convolutions.
    assert sum(mask is not None for _, mask in masks.values()) == 3 * 2 * 2 * 3


def test_bfloat16_keeps_latents_in_float32():
    flow, z = FlowPair("shift", jnp.bfloat16), Z[None]
    variables = strong_variables(flow, z)
    new_z, log_det = jax.jit(flow.apply)(variables, z)
    expected, _ = jax.jit(FlowPair("shift").apply)(variables, z)
    assert new_z.dtype == log_det.dtype == jnp.float32
    goldens.assert_close(new_z, expected, 0.05)
    assert abs(new_z - expected).max() > 0
