"""The guard of a training step: an update that is not finite is not applied.

Everything happens on the devices, so that nothing waits for the host; what a run then does about it
is in `nvae_jax.training.watch`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from nvae_jax.config.training import TrainingConfig

STRETCH = 1000  # updates without trouble after which a run that went back is as it was
_MEMORY = 0.99  # of the running moments of the gradient's norm
_FIRST_NORMS = 50  # updates before an outlier can be told


@flax.struct.dataclass
class Health:
    """What a run remembers of its troubles.

    Attributes:
      skipped: () int32, updates in a row that were left out.
      rollbacks: () int32, how often the run has gone back in all.
      recent: () int32, how often within `STRETCH` updates of each other.
      since: () int32, the step that it last went back to.
      norms: () int32, gradients seen by the moments.
      log_norm: () float32, running mean of the logarithm of the gradient's norm.
      log_norm_variance: () float32, and its running variance.
    """

    skipped: Array
    rollbacks: Array
    recent: Array
    since: Array
    norms: Array
    log_norm: Array
    log_norm_variance: Array

    @classmethod
    def fresh(cls) -> Health:
        """Of a run without troubles."""
        kinds = (*(jnp.int32,) * 5, jnp.float32, jnp.float32)
        return cls(*(jnp.zeros((), kind) for kind in kinds))  # each its own buffer to be donated

    def gone_back(self, step: int, rollbacks: int, recent: int) -> Health:
        """Of a run that has gone back to `step`."""
        fields = {"skipped": 0, "rollbacks": rollbacks, "recent": recent, "since": step}
        return dataclasses.replace(
            self, **{name: jnp.int32(value) for name, value in fields.items()}
        )


def easing(health: Health) -> Array:
    """The factor () of the learning rate after going back: halved each time, 1 without trouble.

    λ is divided by it.
    """
    return jnp.exp2(-health.recent.astype(jnp.float32))


def all_finite(tree: Any) -> Array:
    """Whether every number of a tree's floating-point arrays is finite, ().

    Told from the sum of each array's magnitudes, which has to be finite, too. A conjunction over
    `isfinite` would multiply the size of the program: XLA duplicates it into every fusion.
    """
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.isfinite(jnp.stack([jnp.abs(x).sum() for x in floats])).all()


def within_band(training: TrainingConfig, health: Health, norm: Array) -> Array:
    """Whether a gradient's norm is no outlier, (): by the standard deviations of its logarithm."""
    if training.skip_threshold is None:
        return jnp.asarray(True)
    deviation = jnp.sqrt(health.log_norm_variance)
    limit = health.log_norm + training.skip_threshold * deviation
    return (health.norms < _FIRST_NORMS) | (jnp.log(norm) <= limit)


def guarded(old: Any, new: Any, applied: Array) -> Any:
    """The tree `new` if the update is applied, or else `old`."""
    return jax.tree.map(lambda o, n: jnp.where(applied, n, o), old, new)


def after_update(
    training: TrainingConfig, health: Health, step: Array, norm: Array, applied: Array
) -> Health:
    """The health after update number `step`, counted from 1, whose gradient had this norm."""
    health = dataclasses.replace(
        health,
        skipped=jnp.where(applied, 0, health.skipped + 1),
        recent=jnp.where(step - health.since >= STRETCH, 0, health.recent),
    )
    if training.skip_threshold is None:
        return health
    # As if weighted equally at first. An outlier counts as one at the limit, so that the band
    # follows when gradients become larger for good.
    weight = jnp.maximum(1 - _MEMORY, 1 / (health.norms + 1))
    limit = health.log_norm + training.skip_threshold * jnp.sqrt(health.log_norm_variance)
    seen = jnp.log(norm)
    seen = jnp.where(health.norms < _FIRST_NORMS, seen, jnp.minimum(seen, limit))
    difference = seen - health.log_norm
    moved = dataclasses.replace(
        health,
        norms=health.norms + 1,
        log_norm=health.log_norm + weight * difference,
        log_norm_variance=(1 - weight) * (health.log_norm_variance + weight * difference**2),
    )
    return guarded(health, moved, jnp.isfinite(norm) & (norm > 0))
