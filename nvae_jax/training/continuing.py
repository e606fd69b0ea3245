"""Starting a run or going on with it: what may have changed, and the state to train from.

A run that goes on with other settings goes on as if it had always had them: it keeps its step, and
everything that depends on time (learning rate, KL weight, order of the images, end) is what the new
settings have at that step.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from nvae_jax.config.changes import check_changes, consent
from nvae_jax.config.run import RunConfig, load_run
from nvae_jax.data.loader import filled_batch_size
from nvae_jax.data.sources import Dataset
from nvae_jax.data.sources.folder import ImageFolder
from nvae_jax.errors import ConfigError, require
from nvae_jax.parallel import check_batch_size
from nvae_jax.processes import decided
from nvae_jax.training.guard import Health
from nvae_jax.training.state import TrainState
from nvae_jax.workdir import Workdir
from nvae_jax.workdir.checkpoints import Checkpoints
from nvae_jax.workdir.files import is_remote
from nvae_jax.workdir.integrity import DamagedError, NotFiniteError
from nvae_jax.workdir.manifest import Manifest

AVERAGES = {"params": "ema_params", "batch_stats": "ema_batch_stats"}  # of fields of the state


class Going:
    """How a run starts or goes on in its work directory.

    Args:
      workdir: the run's folder.
      run: the run as it is wanted.
      accept: whether settings and images may differ from those before.

    Attributes:
      run: the run as it is wanted.
      images: those that it has been trained or tested on, which stay in their splits; None: none.
      step: of the checkpoint to go on from; None: a fresh start, which any settings are good for.

    Raises:
      ConfigError: a field that is fixed has changed, or another one without consent.
    """

    def __init__(self, workdir: Workdir, run: RunConfig, accept: bool):
        self._workdir, self.run, self._accept = workdir, run, accept
        workdir.checkpoints.remove_unfinished()
        strays, steps = decided(lambda: (workdir.checkpoints.strays(), workdir.checkpoints.steps()))
        if strays and not steps:
            raise ConfigError(
                f"{workdir.checkpoints.folder} has no whole checkpoint, but parts of "
                f"{', '.join(map(str, strays))}; allowed: a new work directory, or one without them"
            )
        if strays:
            places = ", ".join(map(os.fspath, workdir.checkpoints.set_aside(strays)))
            workdir.log(f"no checkpoints, and moved out of the way: {places}")
        self.step = max(steps, default=None)
        self._changes: list[str] = []
        self._manifest: Manifest | None = None
        self.images: Manifest | None = None
        if self.step is not None:
            saved = load_run(workdir)
            found = check_changes(saved, run, accept, str(workdir.path))
            self._changes = list(map(str, found))
            if all(change.name != "data.test_fraction" for change in found):
                self.images = workdir.load_images()

    def agree(self, dataset: Dataset, total_steps: int) -> None:
        """Compares the images with those of before; a fresh run is written down.

        Raises:
          ConfigError: the images are others than before without consent, or nothing is left to
            train of a run that has changed.
        """
        manifest = dataset.manifest
        if self.step is not None:
            images = self._workdir.image_changes(manifest)
            consent(images, self._accept, str(self._workdir.path))
            self._changes += images
            epochs = self.run.training.epochs
            steps = f"at least the {self.step:,} steps that are trained (these are {total_steps:,})"
            require("training.epochs", epochs, self.step <= total_steps, steps)
        self._manifest = manifest
        if self.step is None:
            self.write_down()
        for note in dataset.notes:
            self._workdir.log(f"{dataset.name}: {note}")

    def write_down(self) -> bool:
        """Writes down what the run is from now on, once it is known that it can go on so.

        Returns: whether it is written down that something has changed.
        """
        if self._manifest is None:
            return False
        self._workdir.save_config(self.run.to_dict())
        self._workdir.save_images(self._manifest)
        if self._changes:
            self._workdir.records.write_changes(self.step or 0, self._changes)
        self._manifest = None
        return bool(self._changes)

    def restore(self, wanted: TrainState) -> TrainState:
        """The state of the checkpoint, with shapes and shardings as `wanted` has them."""
        checkpoints = self._workdir.checkpoints
        state, errors = checkpoints.newest(
            lambda step: restore(checkpoints, step, wanted), DamagedError, NotFiniteError
        )
        step = int(state.step)
        for error, place in zip(errors.values(), checkpoints.set_aside(errors), strict=True):
            self._workdir.log(f"{error}; it is in {place} now, and step {step:,} is used")
        seed = effective_seed(self.run.training.seed, int(state.health.rollbacks))
        return dataclasses.replace(
            state, seed=jax.device_put(jnp.uint32(seed), state.seed.sharding)
        )

    def eased(self, state: TrainState, health: Health) -> TrainState:
        """A state to train on with after the troubles of `health` and one more.

        From then on, images come in another order and draws are others, the learning rate is
        halved, and λ is doubled, see `easing`.
        """
        rollbacks, recent = int(health.rollbacks) + 1, int(health.recent) + 1
        changed = dataclasses.replace(
            state,
            seed=jnp.uint32(effective_seed(self.run.training.seed, rollbacks)),
            health=state.health.gone_back(int(state.step), rollbacks, recent),
        )
        return jax.device_put(changed, jax.tree.map(lambda x: x.sharding, state))


def check_apart(run: RunConfig, workdir: Workdir) -> None:
    """Checks that a new run is not in the folder of its images, which its pictures would join.

    Raises:
      ConfigError: it is.
    """
    if isinstance(run.data, ImageFolder) and not is_remote(workdir.path):
        images, folder = Path(run.data.path).expanduser().resolve(), Path(workdir.path).resolve()
        apart = not folder.is_relative_to(images)
        require(
            "--workdir", os.fspath(workdir.path), apart, "a folder outside of that of the images"
        )


def with_filled_batches(run: RunConfig, dataset: Dataset, mesh: Mesh) -> RunConfig:
    """The run with a batch size that its images fill, if they are the user's own.

    Raises:
      ConfigError: the devices cannot share such a batch.
    """
    training = run.training
    size = filled_batch_size(dataset, training.batch_size) if run.data.is_own else None
    if size in (None, training.batch_size):
        return run
    number, parts = len(dataset.train), training.accumulation_steps
    field = f"training.batch_size, halved until {number:,} training images fill it,"
    check_batch_size(mesh, size, field, parts)
    return dataclasses.replace(run, training=dataclasses.replace(training, batch_size=size))


def effective_seed(seed: int, rollbacks: int) -> int:
    """What decides the order of the images and all draws after so many returns."""
    return (seed + 1_000_003 * rollbacks) % 2**32


def restore(checkpoints: Checkpoints, step: int, wanted: TrainState) -> TrainState:
    """The state of a checkpoint, also of a run with another optimiser or average.

    Transformations of the optimiser without arrays (clipping) may come and go. An average that the
    checkpoint lacks starts from what it averages; one that is not wanted is left out. Checkpoints
    from before the optimiser's states had names have them in the same order; those from before
    there was a `health` get a fresh one.

    Raises:
      DamagedError, NotFiniteError: the checkpoint cannot be used.
    """
    entries = checkpoints.entries(step)
    healthy = "health.skipped" in entries
    saved = {name.split(".")[0] for name in entries}
    fresh = {of: average for of, average in AVERAGES.items() if average not in saved}
    links = list(wanted.opt_state)
    states = {name: s for name, s in wanted.opt_state.items() if jax.tree.leaves(s)}
    numbered = not any(name.startswith(f"opt_state.{next(iter(states))}.") for name in entries)
    opt_state: Any = tuple(wanted.opt_state.values()) if numbered else states
    asked = dataclasses.replace(
        wanted,
        opt_state=opt_state,
        health=wanted.health if healthy else None,
        **dict.fromkeys(fresh.values()),  # type: ignore[arg-type]
    )
    state, _ = checkpoints.restore(asked, step, optional=AVERAGES.values())
    if int(state.step) != step:
        raise DamagedError(f"checkpoint {step} is that of step {int(state.step)}; allowed: its own")
    if not healthy:
        shardings = jax.tree.map(lambda x: x.sharding, wanted.health)
        state = dataclasses.replace(state, health=jax.device_put(Health.fresh(), shardings))
    if numbered:
        states = dict(zip(links, state.opt_state, strict=True))
    else:
        states = {**wanted.opt_state, **state.opt_state}
    averages = {  # each has its own buffers to be donated
        average: jax.tree.map(jnp.copy, getattr(state, of))
        for of, average in fresh.items()
        if getattr(wanted, average) is not None
    }
    opt_state = type(wanted.opt_state)((name, states[name]) for name in links)
    return dataclasses.replace(state, opt_state=opt_state, **averages)
