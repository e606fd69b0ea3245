"""Everything that a training run carries from step to step."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array

from nvae_jax.model.architecture import ModelConfig
from nvae_jax.model.nvae import NVAE
from nvae_jax.training.guard import Health


@flax.struct.dataclass
class TrainState:
    """The state of a run.

    Attributes:
      seed: () uint32, the run's seed. It is here, and not a constant, so that runs that differ only
        in their seed share one compiled program.
      step: () int32, the number of updates so far.
      params: the model's parameters.
      batch_stats: the running statistics of batch norm.
      opt_state: the optimiser's state, by the names of `make_links`.
      ema_params: averaged parameters; None: the run keeps none.
      health: what the run remembers of its troubles.
    """

    seed: Array
    step: Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema_params: Any
    health: Any = flax.struct.field(default_factory=Health.fresh)

    @property
    def eval_variables(self) -> dict:
        """The variables that evaluation and sampling use."""
        params = self.params if self.ema_params is None else self.ema_params
        return {"params": params, "batch_stats": self.batch_stats}


def init_state(
    config: ModelConfig,
    optimizer: optax.GradientTransformationExtraArgs,
    seed: Array,
    x: Array,
    ema: bool = False,
) -> TrainState:
    """A fresh state; to be run inside `jit`.

    Args:
      config: the model's configuration.
      optimizer: the run's optimiser.
      seed: () uint32, seeds the parameters and the draws that data-dependent initialisation sees.
      x: (B, H, W, C) in [0, 1], a real batch.
      ema: whether to keep averaged parameters.
    """
    # This kind of key, because XLA's CPU backend compiles its draws in half the time, and there are
    # hundreds. It is no less random than initial values need.
    key_params, key_sample = jax.random.split(jax.random.key(seed, impl="unsafe_rbg"))
    # A loop gives the same values and compiles faster; there is no gradient to be slow.
    config = dataclasses.replace(config, unroll=False)
    variables = NVAE(config).init({"params": key_params, "sample": key_sample}, x, train=True)
    params = variables["params"]
    return TrainState(
        seed=jnp.asarray(seed, jnp.uint32),
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(params),
        ema_params=params if ema else None,
        health=Health.fresh(),
    )
