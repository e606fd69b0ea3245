"""Batch normalisation and the activation after it, with a hand-written gradient.

    y = activation((x - mean) / √(var + ε) · scale + bias)

The statistics come from one pass over memory; on CPU, from two.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

EPSILON = 1e-5
STATISTICS = "batch_statistics"  # the name of mean and variance to checkpoint policies

Activation = Callable[[Array], Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def normalize_and_activate(
    x: Array, scale: Array, bias: Array, near_mean: Array, activation: Activation
) -> tuple[Array, Array, Array]:
    """Normalises channels by the statistics of the batch and activates them, in float32.

    The gradient is hand-written because it requires two sums over the batch where automatic
    differentiation produces five, and `x` is the only array of its size that it keeps from the
    forward pass. The derivative of the activation is in the dtype of `x`. The returned statistics
    carry no gradient.

    Args:
      x: (B, H, W, C).
      scale: (C,).
      bias: (C,).
      near_mean: (C,), an estimate of the mean; it affects rounding only.
      activation: an elementwise function that closes over no array.

    Returns: y (B, H, W, C) in the dtype of `x`, mean (C,) and biased variance (C,).
    """
    return _forward(x, scale, bias, near_mean, activation)[0]


def _one_pass(x, near_mean):
    """Mean and biased variance from one pass over memory and one exchange between devices.

    They are computed from x - near_mean: while `near_mean` is within a few standard deviations of
    the mean, subtracting the squared mean from the mean of squares cancels few digits.
    """
    shifted = x - near_mean
    mean = shifted.mean((0, 1, 2))
    var = jnp.square(shifted).mean((0, 1, 2)) - jnp.square(mean)
    return near_mean + mean, jnp.maximum(var, 0.0)


def _two_passes(x, near_mean):
    """`_one_pass` without cancellation; the second pass is cheap because it reads from caches."""
    mean = x.mean((0, 1, 2))
    return mean, jnp.square(x - mean).mean((0, 1, 2))


def _forward(x, scale, bias, near_mean, activation):
    x32 = x.astype(jnp.float32)
    mean, var = checkpoint_name(
        lax.platform_dependent(x32, near_mean, cpu=_two_passes, default=_one_pass), STATISTICS
    )
    inverse_std = lax.rsqrt(var + EPSILON)
    y = activation((x32 - mean) * (scale * inverse_std) + bias).astype(x.dtype)
    return (y, mean, var), (x, scale, bias, mean, inverse_std)


def _backward(activation, residuals, gradients):
    x, scale, bias, mean, inverse_std = residuals
    # On every platform: without the barrier, XLA shares intermediate values of the activation with
    # the forward pass and stores them, which is slower than computing them again.
    factor, shift = lax.optimization_barrier((scale * inverse_std, bias))
    centred = x.astype(jnp.float32) - mean
    # In the dtype of x, so that accelerators move half as many bytes in bfloat16.
    _, activation_vjp = jax.vjp(activation, (centred * factor + shift).astype(x.dtype))
    (g,) = activation_vjp(gradients[0])
    g = g.astype(jnp.float32)
    bias_gradient = g.sum((0, 1, 2))
    scale_gradient = (g * centred).sum((0, 1, 2)) * inverse_std
    count = x.size // x.shape[-1]
    slope = inverse_std * scale_gradient / count
    dx = factor * (g - bias_gradient / count - centred * slope)
    return dx.astype(x.dtype), scale_gradient, bias_gradient, jnp.zeros_like(mean)


normalize_and_activate.defvjp(_forward, _backward)
