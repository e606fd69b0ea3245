"""Batch normalisation."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from nvae_jax.model.kernels.batch_norm import EPSILON, Activation, normalize_and_activate

NEW_WEIGHT = 0.05  # NVAE's


class BatchNorm(nn.Module):
    """Normalises channels over batch and space, in float32 (NVAE, §3.1 and appendix A).

    An activation can follow, in the same passes over memory. Under `jit` with a sharded batch the
    statistics are those of the global batch. The biased variance normalises; the unbiased variance
    enters the running average. Running statistics are updated only if `train` is set and the
    collection `batch_stats` is mutable.
    """

    activation: Activation = jax.nn.identity
    new_weight: float = NEW_WEIGHT  # of a batch's statistics in the running average

    @nn.compact
    def __call__(self, x: Array, train: bool, copies: int = 1) -> Array:
        """Normalises and activates `x`.

        Args:
          x: (B, H, W, C).
          train: whether to normalise by the batch rather than by the running statistics.
          copies: how many times a later upsampling repeats each value of `x`, where the paper
            upsamples before this layer; it affects the unbiased variance only.

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
            # Not +=, which would modify NumPy arrays of the caller in place.
            new = self.new_weight
            running_mean.value = (1 - new) * running_mean.value + new * mean
            running_var.value = (1 - new) * running_var.value + new * unbiased
        return y
