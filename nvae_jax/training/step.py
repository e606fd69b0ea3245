"""One update of a model's parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from nvae_jax.model.architecture import ModelConfig
from nvae_jax.model.nvae import NVAE
from nvae_jax.training.metrics import step_metrics
from nvae_jax.training.objective import (
    balance_targets,
    elbo_terms,
    kl_weight,
    regularization_weight,
)
from nvae_jax.training.optimizer import learning_rate_schedule, make_optimizer
from nvae_jax.training.settings import TrainingConfig
from nvae_jax.training.state import TrainState

TrainStep = Callable[[TrainState, Array], tuple[TrainState, dict[str, Array]]]


def make_train_step(
    config: ModelConfig, training: TrainingConfig, steps_per_epoch: int
) -> TrainStep:
    """The update as a pure function, to be jitted: `(state, x) → (state, metrics)`.

    x is (B, H, W, C) in [0, 1]. Under `jit` with a sharded batch, batch-norm statistics and the
    balancing of the KL are those of the global batch. Randomness depends on the seed and the step
    alone. See `step_metrics` for the metrics.
    """
    model = NVAE(config)
    optimizer = make_optimizer(training, steps_per_epoch)
    schedule = learning_rate_schedule(training, steps_per_epoch)
    targets = balance_targets(config, training.kl_balance)
    total_steps = training.epochs * steps_per_epoch

    def train_step(state: TrainState, x: Array) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(training.seed), state.step)
        beta = kl_weight(state.step, total_steps, training.kl_warmup, training.kl_constant)
        regularization = regularization_weight(training, beta)

        def loss(params: Any) -> tuple[Array, Any]:
            output, updated = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                x,
                train=True,
                rngs={"sample": key},
                mutable=["batch_stats"],
            )
            terms = elbo_terms(config, output, x, beta, targets)
            return terms.loss, (terms, output, updated.get("batch_stats", {}))

        gradient, (terms, output, batch_stats) = jax.grad(loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(
            gradient, state.opt_state, state.params, regularization=regularization
        )
        params = optax.apply_updates(state.params, updates)
        ema_params = state.ema_params
        if training.ema_decay is not None:
            ema_params = optax.incremental_update(params, ema_params, 1.0 - training.ema_decay)
        spectral, batch_norm = opt_state[0].penalty, opt_state[1].penalty
        metrics = step_metrics(terms, output) | {
            "loss": terms.loss + regularization * (spectral + batch_norm),
            "spectral_penalty": spectral,
            "batch_norm_penalty": batch_norm,
            "regularization": jnp.asarray(regularization, jnp.float32),
            "kl_weight": beta,
            "learning_rate": schedule(state.step),
            "gradient_norm": optax.global_norm(gradient),
        }
        new_state = TrainState(state.step + 1, params, batch_stats, opt_state, ema_params)
        return new_state, metrics

    return train_step
