"""The depthwise convolution and its hand-written gradients, against XLA's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from nvae_jax.errors import ConfigError
from nvae_jax.model.kernels.depthwise import FORMULATIONS, depthwise_conv
from nvae_jax.parallel import batch_sharding, make_mesh

CAUSAL = tuple((i, j) for i in range(5) for j in range(5) if (i, j) <= (2, 2))


def grouped(x, kernel, stride):
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        feature_group_count=x.shape[-1],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def draw(shape, kernel_size, taps=None, channels=3):
    """Images and a kernel that is zero outside of its taps."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *shape, channels)).astype(np.float32)
    kernel = rng.normal(size=(kernel_size, kernel_size, 1, channels)).astype(np.float32)
    mask = np.ones_like(kernel)
    if taps is not None:
        mask[:] = 0.0
        mask[tuple(zip(*taps, strict=True))] = 1.0
    return x, kernel * mask, mask


@pytest.mark.parametrize(
    ("kernel_size", "stride", "shape", "taps"),
    [
        (3, 1, (4, 6), None),
        (3, 1, (1, 5), None),
        (3, 2, (5, 8), None),
        (5, 1, (7, 4), None),
        (5, 2, (6, 9), None),
        (5, 2, (3, 2), None),
        (11, 1, (5, 6), None),
        (11, 2, (4, 7), None),
        (5, 1, (6, 5), CAUSAL),
        (5, 2, (7, 6), CAUSAL),
        (5, 1, (4, 5), ((0, 4), (3, 1))),
        # Wider than a block of the kernel's gradient, and no multiple of one.
        (3, 1, (3, 67), None),
        (5, 2, (5, 66), CAUSAL),
    ],
)
def test_output_and_gradients_agree_with_xla(kernel_size, stride, shape, taps):
    x, kernel, mask = draw(shape, kernel_size, taps)
    cotangent = np.random.default_rng(1).normal(
        size=(2, *(-(-n // stride) for n in shape), x.shape[-1])
    )

    @jax.jit
    def passes(x, kernel, cotangent):
        outputs = []
        ours = functools.partial(depthwise_conv, stride=stride, taps=taps)
        for conv in (lambda x, k: ours(x, k), lambda x, k: grouped(x, k, stride)):
            y, vjp = jax.vjp(conv, x, kernel)
            outputs.append((y, *vjp(cotangent)))
        return outputs

    ours, xla = passes(x, kernel, cotangent.astype(np.float32))
    # Positions that are zero by construction have no gradient.
    expected_outputs = (xla[0], xla[1], xla[2] * mask)
    for actual, expected in zip(ours, expected_outputs, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("taps", [None, CAUSAL])
def test_gradients_agree_with_differences(taps):
    x, kernel, _ = draw((3, 4), 5, taps, channels=2)
    conv = jax.jit(functools.partial(depthwise_conv, stride=2, taps=taps))
    # The function is linear in each argument, so a large step loses nothing.
    check_grads(lambda x: conv(x, kernel), (x,), order=1, modes="rev", eps=1.0, atol=1e-3)
    if taps is None:
        check_grads(lambda k: conv(x, k), (kernel,), order=1, modes="rev", eps=1.0, atol=1e-3)


def test_bfloat16_keeps_its_dtype_and_sums_the_kernel_gradient_in_float32():
    x, kernel, _ = draw((32, 32), 3)
    x, kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)

    @jax.jit
    def passes(x, kernel):
        y, vjp = jax.vjp(depthwise_conv, x, kernel)
        return y, *vjp(jnp.ones_like(y))

    results = passes(x, kernel)
    assert [result.dtype for result in results] == [jnp.bfloat16] * 3
    expected = passes(x.astype(np.float32), kernel.astype(np.float32))
    for actual, exact, tolerance in zip(results, expected, (0.03, 0.03, 0.005), strict=True):
        error = abs(np.asarray(actual, np.float32) - exact)
        assert error.max() < tolerance * abs(exact).max()


@pytest.mark.parametrize("stride", [1, 2])
def test_formulations_for_gpus_agree_with_xla(stride):
    x, kernel, _ = draw((5, 6), 5)
    forward, gradients = FORMULATIONS["fused products"]

    @jax.jit
    def passes(x, kernel):
        y, vjp = jax.vjp(lambda x, k: grouped(x, k, stride), x, kernel)
        ours = forward(x, kernel, stride=stride)
        return (ours, *gradients(x, kernel, y, stride=stride)), (y, *vjp(y))

    for actual, expected in zip(*passes(x, kernel), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-4)


def convolutions_for(platform):
    """How many convolutions the output and both gradients consist of."""

    def passes(x, kernel):
        y, vjp = jax.vjp(depthwise_conv, x, kernel)
        return y, vjp(y)

    traced = jax.jit(passes).trace(*draw((4, 4), 3)[:2])
    lowered = traced.lower(lowering_platforms=(platform,)).as_text()
    return lowered.count("stablehlo.convolution")


@pytest.mark.parametrize(("platform", "convolutions"), [("cpu", 0), ("cuda", 3), ("tpu", 3)])
def test_only_the_cpu_does_without_xla_convolutions(platform, convolutions):
    assert convolutions_for(platform) == convolutions


def test_on_gpus_products_are_a_choice(monkeypatch):
    monkeypatch.setenv("NVAE_JAX_DEPTHWISE_ON_GPU", "products")
    assert convolutions_for("cuda") == 1  # the kernel's gradient
    assert convolutions_for("tpu") == 3
    monkeypatch.setenv("NVAE_JAX_DEPTHWISE_ON_GPU", "winograd")
    with pytest.raises(ConfigError, match="is 'winograd'; allowed: grouped, products"):
        convolutions_for("cuda")


def test_devices_share_the_gradients_of_a_batch():
    mesh = make_mesh()
    x, kernel, _ = draw((4, 4), 3)
    x = jax.device_put(np.tile(x, (8, 1, 1, 1)), batch_sharding(mesh))

    def gradients(x, kernel):
        y, vjp = jax.vjp(depthwise_conv, x, kernel)
        return vjp(y)

    compiled = jax.jit(gradients).lower(x, kernel).compile()
    assert "all-reduce" in compiled.as_text()
    assert "all-gather" not in compiled.as_text()
    alone = jax.jit(gradients)(np.asarray(x), kernel)
    for shared, expected in zip(compiled(x, kernel), alone, strict=True):
        np.testing.assert_allclose(shared, expected, rtol=1e-4, atol=1e-4)
