"""One update of a model's parameters."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from nvae_jax.config.training import TrainingConfig
from nvae_jax.model.tower import loop_unroll
from nvae_jax.model.vae import VAEConfig
from nvae_jax.objectives.base import Objective, Setting, Turn
from nvae_jax.objectives.table import ELBO
from nvae_jax.training.guard import after_update, all_finite, easing, guarded, within_band
from nvae_jax.training.optimizer import TurnsOptimizer, learning_rate_schedule, moved
from nvae_jax.training.schedules import kl_weight, regularization_weight
from nvae_jax.training.state import TrainState

TrainStep = Callable[[TrainState, Array], tuple[TrainState, dict[str, Array]]]


def make_turns(
    config: VAEConfig,
    training: TrainingConfig,
    steps_per_epoch: int,
    objective: Objective = ELBO,
) -> tuple[Turn, ...]:
    """The losses of an update of a run, in their order."""
    num_images = steps_per_epoch * training.batch_size
    return objective.turns(config, Setting(training.kl_balance, num_images))


def make_train_step(
    config: VAEConfig,
    training: TrainingConfig,
    steps_per_epoch: int,
    mesh: Mesh | None = None,
    objective: Objective = ELBO,
) -> TrainStep:
    """A pure function `(state, x) → (state, metrics)`: one update.

    x is (B, H, W, C) in [0, 1]. Under `jit` with a sharded batch, batch-norm statistics and the
    balancing of the KL are those of the global batch. Randomness depends on the seed and the step
    alone, both of the state. See the objective's losses for the metrics.

    An update of which anything is not finite, whose pixels are not from 0 to 1, or whose gradient
    is an outlier where the run has a `skip_threshold`, is counted and left out: all but step and
    health stay as they were. The gradient is that of all turns.

    With `training.accumulation_steps` = A, one update sees A parts of B / A images one after the
    other. Batch norm and the balancing of the KL work on a part; gradient, metrics and the change
    of the running statistics are the parts' means. Spectral regularisation, batch-norm penalty and
    the optimiser act once, on the mean.

    Args:
      config: the model's configuration.
      training: how to train it.
      steps_per_epoch: updates per epoch.
      mesh: devices that share the work that does not depend on the batch.
      objective: what to minimise.
    """
    turns = make_turns(config, training, steps_per_epoch, objective)
    optimizer = TurnsOptimizer(turns, training, steps_per_epoch, mesh)
    schedule = learning_rate_schedule(training, steps_per_epoch)
    total_steps = training.epochs * steps_per_epoch

    def train_step(state: TrainState, x: Array) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(state.seed), state.step)
        beta = kl_weight(state.step, total_steps, training.kl_warmup, training.kl_constant)
        ease = easing(state.health)
        regularization = regularization_weight(training, beta) / ease

        params, batch_stats, opt_state = state.params, state.batch_stats, state.opt_state
        metrics: dict[str, Array] = {}
        gradients, losses = [], []
        penalties: dict[str, list[Array]] = {}
        for number, turn in enumerate(turns):
            gradient, (measured, batch_stats) = turn_gradient(
                turn,
                (params, batch_stats),
                x,
                turn_key(key, number, training.accumulation_steps),
                beta,
                training.accumulation_steps,
                loop_unroll(config),
            )
            movable, others = moved(turn, params)
            updates, opt_state, penalty = optimizer.update(
                number, gradient, opt_state, movable, regularization
            )
            updates = jax.tree.map(lambda u: ease * u, updates)
            params = {**others, **optax.apply_updates(movable, updates)}
            losses.append(measured.pop("loss"))
            metrics |= measured
            gradients.append(gradient)
            for name, value in penalty.items():
                penalties.setdefault(name, []).append(value)
        ema_params = averaged(training, params, state.ema_params)
        ema_batch_stats = averaged(training, batch_stats, state.ema_batch_stats)
        norm = optax.tree.norm(gradients)
        loss, sums = _sum(losses), {name: _sum(values) for name, values in penalties.items()}
        if sums:
            loss = loss + regularization * _sum(list(sums.values()))
        metrics |= {f"{name}_penalty": value for name, value in sums.items()}
        metrics |= {
            "loss": loss,
            "regularization": jnp.asarray(regularization, jnp.float32),
            "kl_weight": beta,
            "learning_rate": ease * schedule(state.step),
            "gradient_norm": norm,
        }
        averages = state.ema_params, state.ema_batch_stats
        old = state.params, state.batch_stats, state.opt_state, averages
        new = params, batch_stats, opt_state, (ema_params, ema_batch_stats)
        applied = (
            all_finite((new, metrics["loss"], norm))
            & within_band(training, state.health, norm)
            # One batch of pixels up to 255 would slow Adamax down for a thousand updates.
            & ((x.min() >= 0) & (x.max() <= 1))
        )
        step = state.step + 1
        health = after_update(training, state.health, step, norm, applied)
        metrics |= {"skipped": 1 - applied.astype(jnp.int32), "skipped_in_a_row": health.skipped}
        params, batch_stats, opt_state, (ema_params, ema_batch_stats) = guarded(old, new, applied)
        new_state = TrainState(
            state.seed, step, params, batch_stats, opt_state, ema_params, health, ema_batch_stats
        )
        return new_state, metrics

    return train_step


def _sum(values: Sequence[Array]) -> Array:
    """Of one number or more; without a 0 to start from, which would be in the program."""
    return functools.reduce(operator.add, values)


def turn_key(key: Array, number: int, parts: int) -> Array:
    """The key of a turn's draws; the first one's is the update's. Parts have the numbers before."""
    return key if number == 0 else jax.random.fold_in(key, parts + number - 1)


def turn_gradient(
    turn: Turn,
    variables: tuple[Any, Any],
    x: Array,
    key: Array,
    weight: Array,
    parts: int,
    unroll: int,
) -> tuple[Any, tuple[dict[str, Array], Any]]:
    """The gradient of a turn's loss by the parameters that it moves, with what the loss measures.

    Args:
      turn: of an objective.
      variables: all parameters, and the running statistics.
      x: (B, H, W, C) in [0, 1].
      key: of the draws.
      weight: () the KL's.
      parts: see `mean_over_parts`.
      unroll: see `mean_over_parts`.
    """
    params, batch_stats = variables
    movable, others = moved(turn, params)

    def loss(movable: Any, x: Array, key: Array) -> tuple[Array, Any]:
        return turn.loss({**others, **movable}, batch_stats, x, key, weight)

    gradient = jax.grad(loss, has_aux=True)
    return mean_over_parts(lambda x, key: gradient(movable, x, key), x, key, parts, unroll)


def averaged(training: TrainingConfig, values: Any, averages: Any) -> Any:
    """The averages of parameters or statistics after an update; None where the run keeps none."""
    if averages is None or training.ema_decay is None:
        return averages
    return optax.incremental_update(values, averages, 1.0 - training.ema_decay)


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
