"""Convolutions: the effective kernel, padding, and what a fresh layer starts from."""

import math

import goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvae_jax.model.convolution import Conv, effective_kernel


def random_params(conv, x, seed=0):
    """Standard-normal parameters in the shapes of a fresh layer's."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(conv.init, jax.random.key(0), x)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(s.dtype), shapes)


def convolve(x, kernel, stride, dilation, groups):
    """The convolution as a sum over kernel positions, in float64."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    batch, height, width, channels = x.shape
    k, _, inputs, outputs = kernel.shape
    pad = dilation * (k // 2)
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    x = x.reshape(*x.shape[:3], groups, channels // groups)
    kernel = kernel.reshape(k, k, inputs, groups, outputs // groups)
    y = np.zeros((batch, height, width, groups, outputs // groups))
    for i in range(k):
        for j in range(k):
            rows, columns = i * dilation, j * dilation
            window = x[:, rows : rows + height, columns : columns + width]
            y += np.einsum("bhwgi,igo->bhwgo", window, kernel[i, j])
    return y.reshape(batch, height, width, outputs)[:, ::stride, ::stride]


def test_conv_agrees_with_the_official_one():
    arrays = goldens.under("cells", "conv2d")
    params = goldens.conv_params(arrays, "sd/")
    y = jax.jit(Conv(7, 3).apply)({"params": params}, goldens.nhwc(arrays["x"]))
    goldens.assert_close(y, goldens.nhwc(arrays["y"]))
    kernel = arrays["weight_normalized"].transpose(2, 3, 1, 0)
    goldens.assert_close(effective_kernel(params), kernel)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3},
        {"kernel_size": 3, "stride": 2},
        {"kernel_size": 3, "dilation": 2},
        {"kernel_size": 3, "dilation": 2, "stride": 2},
        {"kernel_size": 5, "groups": 2, "stride": 2, "weight_norm": False, "use_bias": False},
        {"kernel_size": 5, "groups": 8},
        {"kernel_size": 1},
        {"kernel_size": 1, "stride": 2, "use_bias": False},
        {"kernel_size": 1, "groups": 4},
    ],
    ids=str,
)
def test_conv_agrees_with_float64(options):
    conv = Conv(8, **options)
    x = np.random.default_rng(1).normal(size=(2, 8, 6, 8)).astype(np.float32)
    variables = random_params(conv, x)
    params = variables["params"]
    assert ("log_gain" in params) == conv.weight_norm
    assert ("bias" in params) == conv.use_bias

    kernel = np.float64(params["kernel"])
    if conv.weight_norm:
        norm = np.sqrt((kernel**2).sum((0, 1, 2)))
        kernel = np.exp(np.float64(params["log_gain"])) * kernel / (norm + 1e-5)
    expected = convolve(x, kernel, conv.stride, conv.dilation, conv.groups)
    expected += params.get("bias", 0.0)
    goldens.assert_close(jax.jit(conv.apply)(variables, x), expected)


@pytest.mark.parametrize(("kernel_size", "groups"), [(1, 1), (3, 1), (5, 1), (3, 2), (5, 2)])
def test_stride_two_is_centred_on_even_pixels(kernel_size, groups):
    # XLA's own SAME padding would centre an even image on odd ones.
    conv = Conv(2, kernel_size, stride=2, groups=groups, weight_norm=False, use_bias=False)
    x = np.random.default_rng(0).normal(size=(1, 8, 6, 2)).astype(np.float32)
    kernel = np.zeros((kernel_size, kernel_size, 2 // groups, 2), np.float32)
    kernel[kernel_size // 2, kernel_size // 2] = np.eye(2) if groups == 1 else 1.0
    y = conv.apply({"params": {"kernel": kernel}}, x)
    np.testing.assert_array_equal(y, x[:, ::2, ::2])


@pytest.mark.parametrize(
    ("kernel_size", "channels", "groups", "fan_in"),
    [(1, 64, 1, 64), (3, 32, 1, 288), (5, 64, 64, 25), (3, 64, 8, 72)],
)
def test_a_fresh_layer_is_uniform_within_its_fan_in(kernel_size, channels, groups, fan_in):
    conv = Conv(64, kernel_size, groups=groups, log_gain_shift=math.log(10))
    params = jax.jit(conv.init)(jax.random.key(0), jnp.zeros((1, 2, 2, channels)))["params"]
    bound = fan_in**-0.5
    kernel, bias = np.asarray(params["kernel"]), np.asarray(params["bias"])
    assert kernel.shape == (kernel_size, kernel_size, channels // groups, 64)
    for values in (kernel, bias):
        assert abs(values).max() <= bound
        # Uniform: mean 0 and variance bound² / 3, within five standard errors.
        assert abs(values.mean()) < 5 * bound / math.sqrt(3 * values.size)
        assert abs(np.square(values).mean() - bound**2 / 3) < 5 * bound**2 / math.sqrt(
            11.25 * values.size
        )
    norm = np.sqrt(np.square(kernel).sum((0, 1, 2)))
    np.testing.assert_allclose(params["log_gain"], np.log(norm + 1e-2) - np.log(10), rtol=1e-4)


def test_data_initialisation_standardises_the_first_outputs():
    conv = Conv(6, 3, data_init=True)
    x = 3 + np.random.default_rng(0).normal(size=(4, 8, 6, 5)).astype(np.float32)
    y, variables = jax.jit(conv.init_with_output)(jax.random.key(0), x)
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0.0, atol=1e-5)
    np.testing.assert_allclose(y.std((0, 1, 2), ddof=1), 0.2, rtol=1e-3)
    # Only the first: later batches are convolved with what the first one left.
    np.testing.assert_allclose(conv.apply(variables, x), y, atol=1e-5)
    assert abs(conv.apply(variables, 2 * x).mean()) > 0.1


def test_effective_kernel_of_a_stack_is_the_stack_of_effective_kernels():
    rng = np.random.default_rng(0)
    weights = {
        "kernel": rng.normal(size=(4, 3, 3, 2, 5)).astype(np.float32),
        "log_gain": rng.normal(size=(4, 5)).astype(np.float32),
    }
    mask = rng.integers(0, 2, (3, 3, 2, 5)).astype(np.float32)
    stacked = effective_kernel(weights, mask)
    for i in range(4):
        single = effective_kernel({name: weight[i] for name, weight in weights.items()}, mask)
        np.testing.assert_allclose(stacked[i], single, rtol=1e-6)
    np.testing.assert_array_equal(stacked * (1 - mask), 0.0)
    # The norm is that of what the mask leaves, and only the gain decides it.
    norm = np.sqrt(np.square(stacked).sum((1, 2, 3)))
    np.testing.assert_allclose(norm, np.exp(weights["log_gain"]), rtol=1e-4)


def test_a_kernel_without_weight_norm_is_itself():
    kernel = np.ones((1, 1, 2, 2), np.float32)
    np.testing.assert_array_equal(effective_kernel({"kernel": kernel}), kernel)


def test_a_zero_kernel_stays_zero_with_a_finite_gradient():
    # Each output channel whose norm is zero, such as one that a mask blanks altogether.
    kernel = np.random.default_rng(0).normal(size=(3, 3, 2, 4)).astype(np.float32)
    kernel[..., 1] = 0.0
    weights = {"kernel": kernel, "log_gain": np.ones(4, np.float32)}

    @jax.value_and_grad
    def total(weights):
        return jnp.sum(jnp.sin(effective_kernel(weights)))

    value, gradient = total(weights)
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
    np.testing.assert_array_equal(effective_kernel(weights)[..., 1], 0.0)


def test_bfloat16_activations_with_float32_parameters():
    x = np.random.default_rng(0).normal(size=(2, 6, 4, 8)).astype(np.float32)
    conv = Conv(8, 3, dtype=jnp.bfloat16)
    variables = random_params(conv, x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    y = conv.apply(variables, x)
    assert y.dtype == jnp.bfloat16
    expected = Conv(8, 3).apply(variables, x)
    goldens.assert_close(y.astype(np.float32), expected, 0.02)


def test_bfloat16_sums_the_gradient_of_a_bias_in_float32():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 16, 16, 4)).astype(np.float32)
    conv = Conv(3, dtype=jnp.bfloat16)
    # Two thousand of one sign, which a sum in bfloat16 would not carry.
    weights = jnp.asarray(rng.uniform(size=(8, 16, 16, 3)), jnp.bfloat16)

    @jax.jit
    def gradient(variables, x, weights):
        return jax.grad(lambda v: (conv.apply(v, x) * weights).astype(jnp.float32).sum())(variables)

    bias = gradient(random_params(conv, x), x, weights)["params"]["bias"]
    np.testing.assert_allclose(bias, np.asarray(weights, np.float64).sum((0, 1, 2)), rtol=1e-4)
