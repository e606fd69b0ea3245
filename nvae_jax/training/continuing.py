"""Starting a run or going on with it: what may have changed, and the state to train from.

A run that goes on with other settings goes on as if it had always had them: it keeps its step, and
everything that depends on time (learning rate, KL weight, order of the images, end) is what the new
settings have at that step.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from nvae_jax.config.changes import check_changes, consent
from nvae_jax.config.run import RunConfig, read_run
from nvae_jax.data.sources import Dataset
from nvae_jax.errors import require
from nvae_jax.training.state import TrainState
from nvae_jax.workdir import Workdir
from nvae_jax.workdir.checkpoints import Checkpoints


class Going:
    """How a run starts or goes on in its work directory.

    Args:
      workdir: the run's folder.
      run: the run as it is wanted.
      accept: whether settings and images may be others than before.

    Attributes:
      step: of the checkpoint to go on from; None: a fresh start, which any settings are good for.

    Raises:
      ConfigError: a field that is fixed has changed, or another one without consent.
    """

    def __init__(self, workdir: Workdir, run: RunConfig, accept: bool):
        self._workdir, self._run, self._accept = workdir, run, accept
        self.step = workdir.checkpoints.latest_step()
        self._changes: list[str] = []
        if self.step is not None:
            saved = read_run(workdir.load_config())
            self._changes = list(map(str, check_changes(saved, run, accept, str(workdir.path))))

    def agree(self, dataset: Dataset, total_steps: int) -> None:
        """Compares the images with those of before, and writes down what the run is from now on.

        Raises:
          ConfigError: the images are others than before without consent, or nothing is left to
            train of a run that has changed.
        """
        manifest = dataset.manifest
        if self.step is not None:
            images = self._workdir.image_changes(manifest)
            consent(images, self._accept, str(self._workdir.path))
            self._changes += images
            epochs = self._run.training.epochs
            steps = f"more than the {self.step:,} steps that are trained ({total_steps:,} now)"
            require("training.epochs", epochs, self.step <= total_steps, steps)
        self._workdir.save_config(self._run.to_dict())
        self._workdir.save_images(manifest)
        if self._changes:
            self._workdir.records.write_changes(self.step or 0, self._changes)
        for note in dataset.notes:
            self._workdir.log(f"{dataset.name}: {note}")

    def restore(self, wanted: TrainState) -> TrainState:
        """The state of the checkpoint, with shapes and shardings as `wanted` has them."""
        assert self.step is not None
        state = restore(self._workdir.checkpoints, self.step, wanted)
        seed = jax.device_put(jnp.uint32(self._run.training.seed), state.seed.sharding)
        return dataclasses.replace(state, seed=seed)


def restore(checkpoints: Checkpoints, step: int, wanted: TrainState) -> TrainState:
    """The state of a checkpoint, also of a run with another optimiser or average.

    Transformations of the optimiser without arrays (clipping) may come and go. An average that the
    checkpoint lacks starts from its parameters; one that is not wanted is left out. Checkpoints
    from before the optimiser's states had names have them in the same order.
    """
    entries = checkpoints.entries(step)
    averaged = any(name.startswith("ema_params.") for name in entries)
    links = list(wanted.opt_state)
    states = {name: s for name, s in wanted.opt_state.items() if jax.tree.leaves(s)}
    numbered = not any(name.startswith(f"opt_state.{next(iter(states))}.") for name in entries)
    opt_state: Any = tuple(wanted.opt_state.values()) if numbered else states
    ema_params = wanted.ema_params if averaged else None
    asked = dataclasses.replace(wanted, opt_state=opt_state, ema_params=ema_params)
    state, _ = checkpoints.restore(asked, step, optional="ema_params")
    if numbered:
        states = dict(zip(links, state.opt_state, strict=True))
    else:
        states = {**wanted.opt_state, **state.opt_state}
    ema_params = state.ema_params
    if wanted.ema_params is not None and not averaged:
        ema_params = jax.tree.map(jnp.copy, state.params)  # each has its own buffers to be donated
    opt_state = type(wanted.opt_state)((name, states[name]) for name in links)
    return dataclasses.replace(state, opt_state=opt_state, ema_params=ema_params)
