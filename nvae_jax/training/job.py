"""A run that is ready to be trained, with all that belongs to it."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from nvae_jax.compilation import compiled_together
from nvae_jax.config.run import RunConfig
from nvae_jax.data.loader import train_batches
from nvae_jax.data.loading import LoadingConfig
from nvae_jax.data.sources import Dataset
from nvae_jax.parallel import shard_batch
from nvae_jax.training.continuing import Going
from nvae_jax.training.fitting import check_memory
from nvae_jax.training.program import Program
from nvae_jax.training.state import TrainState
from nvae_jax.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class Job:
    """A run with its folder, devices, data and functions.

    Attributes:
      workdir: its folder.
      run: its configuration.
      mesh: its devices.
      dataset: its images.
      program: its functions.
      going: how it starts or goes on.
      epoch_steps: updates per epoch.
      start: of `train`, in seconds of the monotonic clock.
      ignore_memory: whether to start although the memory seems too small.
    """

    workdir: Workdir
    run: RunConfig
    mesh: Mesh
    dataset: Dataset
    program: Program
    going: Going
    epoch_steps: int
    start: float
    ignore_memory: bool = False

    @property
    def total_steps(self) -> int:
        """Updates of the whole run."""
        return self.run.training.epochs * self.epoch_steps

    @property
    def eval_batch_size(self) -> int:
        """Images of a validation at a time."""
        return self.run.training.eval_batch_size or self.run.training.batch_size

    def check_memory(self, compiled: Any) -> None:
        """Refuses a compiled update that does not fit, unless that is to be tried."""
        if not self.ignore_memory:
            check_memory(compiled, self.mesh, self.run, self.going.step is not None)

    def batches(self, start_step: int, loading: LoadingConfig, seed: int) -> Any:
        """Training batches on the devices, the next one on its way there while one is used."""
        return train_batches(
            self.dataset,
            self.run.training.batch_size,
            seed,
            start_step,
            loading=loading,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            put=functools.partial(shard_batch, self.mesh),
        )

    def fresh(self) -> TrainState:
        """The state of a run that starts."""
        init = compiled_together(self.program.init, "init")
        batches = self.batches(0, LoadingConfig(), self.run.training.seed)
        state = init(next(batches), np.uint32(self.run.training.seed))
        batches.close()
        count = sum(x.size for x in jax.tree.leaves(state.params))
        self.workdir.log(f"a new model of {count:,} parameters")
        return state
