"""Everything that a training run carries from step to step."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from nvae_jax.config.training import TrainingConfig
from nvae_jax.model.families import make_network
from nvae_jax.model.vae import VAEConfig
from nvae_jax.objectives.base import Objective
from nvae_jax.objectives.table import ELBO
from nvae_jax.training.guard import Health


@flax.struct.dataclass
class TrainState:
    """The state of a run.

    Attributes:
      seed: () uint32, the run's seed. It is here, and not a constant, so that runs that differ only
        in their seed share one compiled program.
      step: () int32, the number of updates so far.
      params: the model's parameters, and the objective's beside them where it has some.
      batch_stats: the running statistics of batch norm.
      opt_state: the optimisers' states, by the names of `TurnsOptimizer`.
      ema_params: averaged parameters; None: the run keeps none.
      health: what the run remembers of its troubles.
      ema_batch_stats: running statistics, averaged like the parameters; None: the run keeps none.
    """

    seed: Array
    step: Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema_params: Any
    health: Any = flax.struct.field(default_factory=Health.fresh)
    ema_batch_stats: Any = None

    @property
    def eval_variables(self) -> dict:
        """The variables that evaluation and sampling use."""
        params = self.params if self.ema_params is None else self.ema_params
        own = self.ema_batch_stats is None
        return {"params": params, "batch_stats": self.batch_stats if own else self.ema_batch_stats}


def init_state(
    config: VAEConfig,
    optimizer: Any,
    seed: Array,
    x: Array,
    training: TrainingConfig | None = None,
    objective: Objective = ELBO,
) -> TrainState:
    """A fresh state; to be run inside `jit`.

    Args:
      config: the model's configuration.
      optimizer: the run's optimiser, of which `init(params)` is used.
      seed: () uint32, seeds the parameters and the draws that data-dependent initialisation sees.
      x: (B, H, W, C) in [0, 1], a real batch.
      training: says which averages are kept; None: none.
      objective: what is minimised; it may have parameters of its own.
    """
    # This kind of key, because XLA's CPU backend compiles its draws in half the time, and there are
    # hundreds. It is no less random than initial values need.
    key_params, key_sample = jax.random.split(jax.random.key(seed, impl="unsafe_rbg"))
    rngs = {"params": key_params, "sample": key_sample}
    variables = make_network(config.quick_to_compile).init(rngs, x, train=True)
    own = objective.init(config, jax.random.fold_in(key_params, 1))
    params, batch_stats = {**variables["params"], **own}, variables.get("batch_stats", {})
    averages = training is not None and training.ema_decay is not None
    of_statistics = training is not None and training.eval_statistics == "averaged"
    return TrainState(
        seed=jnp.asarray(seed, jnp.uint32),
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        ema_params=params if averages else None,
        health=Health.fresh(),
        ema_batch_stats=batch_stats if of_statistics else None,
    )
