"""Batch normalisation."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

EPSILON = 1e-5
NEW_WEIGHT = 0.05  # of a batch's statistics in the running average
STATISTICS = "batch_statistics"  # their name to checkpoint policies

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
      near_mean: (C,), what the mean is expected to be near to; only rounding depends on it.
      activation: of each value by itself; a function that closes over no array.

    Returns: the activated x in its dtype, mean (C,), and biased variance (C,).
    """
    return _forward(x, scale, bias, near_mean, activation)[0]


def _forward(x, scale, bias, near_mean, activation):
    x32 = x.astype(jnp.float32)
    mean, var = checkpoint_name(
        lax.platform_dependent(x32, near_mean, cpu=_two_passes, default=_one_pass), STATISTICS
    )
    inverse_std = lax.rsqrt(var + EPSILON)
    y = activation((x32 - mean) * (scale * inverse_std) + bias).astype(x.dtype)
    return (y, mean, var), (x, scale, bias, mean, inverse_std)


def _two_passes(x, near_mean):
    """Mean and biased variance; a second pass costs nothing to speak of out of a CPU's caches."""
    mean = x.mean((0, 1, 2))
    return mean, jnp.square(x - mean).mean((0, 1, 2))


def _one_pass(x, near_mean):
    """The same from one pass over memory and one exchange between devices.

    Taken from x - near_mean, whose squares do not drown the variance while `near_mean` is within
    some standard deviations of the mean.
    """
    shifted = x - near_mean
    mean = shifted.mean((0, 1, 2))
    var = jnp.square(shifted).mean((0, 1, 2)) - jnp.square(mean)
    return near_mean + mean, jnp.maximum(var, 0.0)


def _backward(activation, residuals, gradients):
    x, scale, bias, mean, inverse_std = residuals
    # The barrier keeps the compiler from storing the activation's parts in the forward pass to save
    # computing them again: memory is slower.
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


class BatchNorm(nn.Module):
    """Normalises channels over batch and space, in float32 (NVAE, §3.1 and appendix A).

    An activation may follow, in the same passes over memory. Under `jit` over a sharded batch the
    statistics are those of the global batch. The biased variance normalises and the unbiased one
    enters the running variance. Running statistics change only when `train` is set and the
    collection `batch_stats` is mutable.
    """

    activation: Activation = jax.nn.identity

    @nn.compact
    def __call__(self, x: Array, train: bool, copies: int = 1) -> Array:
        """Normalises and activates `x`.

        Args:
          x: (B, H, W, C).
          train: normalise by the batch, rather than by the running statistics.
          copies: how often every value of `x` will be repeated by an upsampling that was moved
            behind this layer; it only enters the unbiased variance.

        Returns: (B, H, W, C) in the dtype of `x`.
        """
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        if not train:
            factor = scale * lax.rsqrt(running_var.value + EPSILON)
            y = (x.astype(jnp.float32) - running_mean.value) * factor + bias
            return self.activation(y).astype(x.dtype)
        y, mean, var = normalize_and_activate(x, scale, bias, running_mean.value, self.activation)
        if self.is_mutable_collection("batch_stats") and not self.is_initializing():
            count = copies * x.size // channels
            unbiased = var * (count / (count - 1))
            # Not +=, which would write into a caller's NumPy arrays.
            running_mean.value = (1 - NEW_WEIGHT) * running_mean.value + NEW_WEIGHT * mean
            running_var.value = (1 - NEW_WEIGHT) * running_var.value + NEW_WEIGHT * unbiased
        return y
