"""One update of a model's parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from nvae_jax.config.training import TrainingConfig
from nvae_jax.model.architecture import ModelConfig
from nvae_jax.model.nvae import NVAE
from nvae_jax.model.tower import loop_unroll
from nvae_jax.training.guard import after_update, all_finite, easing, guarded, within_band
from nvae_jax.training.metrics import step_metrics
from nvae_jax.training.objective import (
    balance_targets,
    elbo_terms,
    kl_weight,
    regularization_weight,
)
from nvae_jax.training.optimizer import learning_rate_schedule, make_optimizer
from nvae_jax.training.state import TrainState

TrainStep = Callable[[TrainState, Array], tuple[TrainState, dict[str, Array]]]
Loss = Callable[[Any, Any, Array, Array, Array], tuple[Array, Any]]


def make_loss(config: ModelConfig, training: TrainingConfig) -> Loss:
    """A function `(params, batch_stats, x, key, beta) → (loss, (metrics, batch_stats))`.

    x is (B, H, W, C) in [0, 1] and beta the KL's weight. The loss is in nats per image, without
    regularisers; the statistics that come back are the updated running ones.
    """
    model = NVAE(config)
    targets = balance_targets(config, training.kl_balance)

    def loss(params: Any, batch_stats: Any, x: Array, key: Array, beta: Array) -> tuple[Array, Any]:
        output, updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            x,
            train=True,
            rngs={"sample": key},
            mutable=["batch_stats"],
        )
        terms = elbo_terms(config, output, x, beta, targets)
        metrics = step_metrics(terms, output) | {"loss": terms.loss}
        return terms.loss, (metrics, updated.get("batch_stats", {}))

    return loss


def make_train_step(
    config: ModelConfig, training: TrainingConfig, steps_per_epoch: int, mesh: Mesh | None = None
) -> TrainStep:
    """A pure function `(state, x) → (state, metrics)`: one update.

    x is (B, H, W, C) in [0, 1]. Under `jit` with a sharded batch, batch-norm statistics and the
    balancing of the KL are those of the global batch. Randomness depends on the seed and the step
    alone, both of the state. See `step_metrics` for the metrics.

    An update of which anything is not finite, whose pixels are not from 0 to 1, or whose gradient
    is an outlier where the run has a `skip_threshold`, is counted and left out: all but step and
    health stay as they were.

    With `training.accumulation_steps` = A, one update sees A parts of B / A images one after the
    other. Batch norm and the balancing of the KL work on a part; gradient, metrics and the change
    of the running statistics are the parts' means. Spectral regularisation, batch-norm penalty and
    Adamax act once, on the mean.

    Args:
      config: the model's configuration.
      training: how to train it.
      steps_per_epoch: updates per epoch.
      mesh: devices that share the work that does not depend on the batch.
    """
    gradient_of_loss = jax.grad(make_loss(config, training), has_aux=True)
    optimizer = make_optimizer(training, steps_per_epoch, mesh)
    schedule = learning_rate_schedule(training, steps_per_epoch)
    total_steps = training.epochs * steps_per_epoch

    def train_step(state: TrainState, x: Array) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(state.seed), state.step)
        beta = kl_weight(state.step, total_steps, training.kl_warmup, training.kl_constant)
        ease = easing(state.health)
        regularization = regularization_weight(training, beta) / ease

        gradient, (metrics, batch_stats) = mean_over_parts(
            lambda x, key: gradient_of_loss(state.params, state.batch_stats, x, key, beta),
            x,
            key,
            training.accumulation_steps,
            loop_unroll(config),
        )
        updates, opt_state = optimizer.update(
            gradient, state.opt_state, state.params, regularization=regularization
        )
        updates = jax.tree.map(lambda u: ease * u, updates)
        params, ema_params = apply_updates(training, updates, state.params, state.ema_params)
        norm = optax.tree.norm(gradient)
        spectral, batch_norm = opt_state["spectral"].penalty, opt_state["batch_norm"].penalty
        metrics |= {
            "loss": metrics["loss"] + regularization * (spectral + batch_norm),
            "spectral_penalty": spectral,
            "batch_norm_penalty": batch_norm,
            "regularization": jnp.asarray(regularization, jnp.float32),
            "kl_weight": beta,
            "learning_rate": ease * schedule(state.step),
            "gradient_norm": norm,
        }
        old = state.params, state.batch_stats, state.opt_state, state.ema_params
        new = params, batch_stats, opt_state, ema_params
        applied = (
            all_finite((new, metrics["loss"], norm))
            & within_band(training, state.health, norm)
            # One batch of pixels up to 255 would slow Adamax down for a thousand updates.
            & ((x.min() >= 0) & (x.max() <= 1))
        )
        step = state.step + 1
        health = after_update(training, state.health, step, norm, applied)
        metrics |= {"skipped": 1 - applied.astype(jnp.int32), "skipped_in_a_row": health.skipped}
        params, batch_stats, opt_state, ema_params = guarded(old, new, applied)
        new_state = TrainState(state.seed, step, params, batch_stats, opt_state, ema_params, health)
        return new_state, metrics

    return train_step


def apply_updates(
    training: TrainingConfig, updates: Any, params: Any, ema_params: Any
) -> tuple[Any, Any]:
    """The updated parameters, and the averaged ones where the run keeps them, else None."""
    params = optax.apply_updates(params, updates)
    if training.ema_decay is not None:
        ema_params = optax.incremental_update(params, ema_params, 1.0 - training.ema_decay)
    return params, ema_params


def mean_over_parts(
    function: Callable[[Array, Array], Any], x: Array, key: Array, parts: int, unroll: int
) -> Any:
    """The mean of `function(part of x, its key)` over parts of a batch, computed in turn.

    Part i is x[i::parts], so that devices that share x along its first axis share every part alike
    and nothing moves between them. Its key is `fold_in(key, i)`; the whole batch has `key` itself.

    Args:
      function: returns a pytree of numbers, which are averaged in float32.
      x: (B, …), B a multiple of `parts`.
      key: a PRNG key.
      parts: the number of parts.
      unroll: as in `jax.lax.scan`.
    """
    if parts == 1:
        return function(x, key)
    stacked = x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

    def add(total: Any, part: tuple[Array, Array]) -> tuple[Any, None]:
        number, x = part
        values = function(x, jax.random.fold_in(key, number))
        return jax.tree.map(lambda t, v: t + v / parts, total, values), None

    values = jax.eval_shape(function, stacked[0], key)
    zeros = jax.tree.map(lambda v: jnp.zeros(v.shape, jnp.float32), values)
    return jax.lax.scan(add, zeros, (jnp.arange(parts), stacked), unroll=unroll)[0]
