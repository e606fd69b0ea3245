"""Batch normalisation and the activation behind it, with a written-out gradient.

On CPUs the statistics come from two passes over memory, elsewhere from one.
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
    """Normalises channels by the batch's own statistics and activates them, in float32.

    The gradient is written out because it needs two sums over the batch where automatic
    differentiation makes five, and no array of the size of `x` from the forward pass but `x`
    itself. The activation's derivative is in the dtype of `x`. The statistics that are returned
    carry no gradient.

    Args:
      x: (B, H, W, C).
      scale: (C,).
      bias: (C,).
      near_mean: (C,), values near the expected mean; only rounding depends on them.
      activation: an elementwise function that closes over no array.

    Returns: the activated x in its dtype, mean (C,), and biased variance (C,).
    """
    return _forward(x, scale, bias, near_mean, activation)[0]


def _one_pass(x, near_mean):
    """Mean and biased variance from one pass over memory and one exchange between devices.

    They are taken from x - near_mean, whose squares do not drown the variance while `near_mean` is
    within some standard deviations of the mean.
    """
    shifted = x - near_mean
    mean = shifted.mean((0, 1, 2))
    var = jnp.square(shifted).mean((0, 1, 2)) - jnp.square(mean)
    return near_mean + mean, jnp.maximum(var, 0.0)


def _two_passes(x, near_mean):
    """The same from two passes, of which the second costs little out of a CPU's caches."""
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
    # The barrier keeps the compiler from storing the activation's parts in the forward pass, which
    # would save computing them again: memory is slower.
    factor, shift = lax.optimization_barrier((scale * inverse_std, bias))
    centred = x.astype(jnp.float32) - mean
    # In the dtype of x, so that accelerators write and read half as much in bfloat16.
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
