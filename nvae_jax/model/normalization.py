"""Batch normalisation."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array, lax

EPSILON = 1e-5
NEW_WEIGHT = 0.05  # of a batch's statistics in the running average


class BatchNorm(nn.Module):
    """Normalises channels over batch and space, in float32 (NVAE, §3.1 and appendix A).

    Under `jit` over a sharded batch the statistics are those of the global batch. The biased
    variance normalises and the unbiased one enters the running variance. Running statistics change
    only when `train` is set and the collection `batch_stats` is mutable.
    """

    @nn.compact
    def __call__(self, x: Array, train: bool, copies: int = 1) -> Array:
        """Normalises `x`.

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
        x32 = x.astype(jnp.float32)
        if train:
            mean = x32.mean((0, 1, 2))
            var = jnp.square(x32 - mean).mean((0, 1, 2))
            if self.is_mutable_collection("batch_stats") and not self.is_initializing():
                count = copies * x.size // channels
                unbiased = var * (count / (count - 1))
                running_mean.value += NEW_WEIGHT * (mean - running_mean.value)
                running_var.value += NEW_WEIGHT * (unbiased - running_var.value)
        else:
            mean, var = running_mean.value, running_var.value
        factor = scale * lax.rsqrt(var + EPSILON)
        return ((x32 - mean) * factor + bias).astype(x.dtype)
