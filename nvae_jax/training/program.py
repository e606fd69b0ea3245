"""The compiled functions of a training run on a mesh."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from nvae_jax.compilation import jit_on
from nvae_jax.config.training import TrainingConfig
from nvae_jax.errors import ConfigError
from nvae_jax.image_spec import ImageSpec
from nvae_jax.model.vae import VAEConfig
from nvae_jax.objectives.base import Objective
from nvae_jax.objectives.table import ELBO
from nvae_jax.parallel import batch_sharding, check_batch_size, replicated, state_sharding
from nvae_jax.training.optimizer import TurnsOptimizer
from nvae_jax.training.state import TrainState, init_state
from nvae_jax.training.step import make_train_step, make_turns

Batch = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Program:
    """A run's functions, jitted, and the shapes of their arguments.

    Attributes:
      init: `(batch, seed) → state`, a fresh one; the batch is a real one, the seed () uint32.
      update: `(state, batch) → (state, metrics)`; the state that it is given is donated.
      state: a `TrainState` of `jax.ShapeDtypeStruct`, with shardings.
      batch: a batch as the loader makes it, as `jax.ShapeDtypeStruct` with shardings: `image` uint8
        (B, H, W, C), `index` and `epoch` int32 (B,).
    """

    init: Any
    update: Any
    state: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]


def make_program(
    config: VAEConfig,
    training: TrainingConfig,
    steps_per_epoch: int,
    mesh: Mesh,
    *,
    flip: bool,
    objective: Objective = ELBO,
) -> Program:
    """The functions of a run; nothing is compiled yet.

    Args:
      config: the model's configuration.
      training: how to train it.
      steps_per_epoch: updates per epoch.
      mesh: the devices; they need not be at hand as long as nothing is run.
      flip: whether training images are mirrored left to right at random.
      objective: what to minimise.

    Raises:
      ConfigError: the devices cannot share a batch equally, or lack what `model.remat` asks for.
    """
    parts = training.accumulation_steps
    check_batch_size(mesh, training.batch_size, "training.batch_size", parts)
    _check_offload(config, mesh)

    def init(batch: Batch, seed: Array) -> TrainState:
        turns = make_turns(config, training, steps_per_epoch, objective)
        optimizer = TurnsOptimizer(turns, training, steps_per_epoch)
        x = batch_pixels(config.image, batch, seed, flip)
        return init_state(config, optimizer, seed, x, training, objective)

    train_step = make_train_step(config, training, steps_per_epoch, mesh, objective)

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        return train_step(state, batch_pixels(config.image, batch, state.seed, flip))

    batch_size = training.batch_size
    shapes = {
        "image": ((batch_size, *config.image_shape), jnp.uint8),
        "index": ((batch_size,), jnp.int32),
        "epoch": ((batch_size,), jnp.int32),
    }
    on_batch = batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=on_batch)
        for name, (shape, dtype) in shapes.items()
    }
    state = jax.eval_shape(init, batch, jax.ShapeDtypeStruct((), jnp.uint32))
    on_state = state_sharding(mesh, state)
    return Program(
        init=jit_on(mesh, init, in_shardings=(on_batch, replicated(mesh)), out_shardings=on_state),
        update=jit_on(
            mesh,
            update,
            in_shardings=(on_state, on_batch),
            out_shardings=(on_state, replicated(mesh)),
            donate_argnums=0,
        ),
        state=jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, on_state
        ),
        batch=batch,
    )


def batch_pixels(image: ImageSpec, batch: Batch, seed: Array, flip: bool) -> Array:
    """Training pixels (B, H, W, C) of a batch of `Program.batch`, by the run's seed."""
    return image.training_pixels(
        batch["image"],
        batch["index"],
        batch["epoch"],
        # Not the key of the steps' own draws.
        seed_key=jax.random.fold_in(jax.random.key(seed), 2**31 - 1),
        flip=flip,
    )


def _check_offload(config: VAEConfig, mesh: Mesh) -> None:
    device = mesh.devices.flat[0]
    if config.remat == "offload" and device.platform == "cpu":
        raise ConfigError("model.remat is 'offload'; allowed on cpu: none, cell, group")
