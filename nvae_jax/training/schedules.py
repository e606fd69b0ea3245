"""Weights that change along training: the KL's and the regularisers'."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from nvae_jax.config.training import TrainingConfig


def kl_weight(step: Array | int, total_steps: int, warmup: float, constant: float) -> Array:
    """β at a step: 1e-4, then linear to 1 over the part `warmup` of training."""
    ramp = max(warmup * total_steps, 1e-9)  # a warm-up of no length is a jump
    return jnp.clip((step - constant * total_steps) / ramp, 1e-4, 1.0)


def regularization_weight(config: TrainingConfig, beta: Array) -> Array:
    """λ: constant, or geometric from its initial value along the KL warm-up (β from 0 to 1)."""
    if not config.regularization:
        return jnp.zeros(())
    final = jnp.log(config.regularization)
    initial = final
    if config.initial_regularization is not None:
        initial = jnp.log(config.initial_regularization)
    return jnp.exp((1.0 - beta) * initial + beta * final)
