"""Saving a run's state, where a disk may be full and a bucket out of reach for a while."""

from __future__ import annotations

import contextlib
from typing import Any

from nvae_jax.errors import ConfigError
from nvae_jax.training.state import TrainState
from nvae_jax.workdir import Workdir
from nvae_jax.workdir.integrity import NotFiniteError
from nvae_jax.workdir.retention import NELBO


class Saver:
    """Saves checkpoints, and goes on when one fails.

    Args:
      workdir: the run's folder.
    """

    def __init__(self, workdir: Workdir):
        self._workdir = workdir
        self._started: int | None = None  # the step of a save that is not verified yet
        self._failed: int | None = None  # that of one that failed, until a later one is verified

    @property
    def note(self) -> str:
        """For every line about progress: that the last save failed, or nothing."""
        if self._failed is None:
            return ""
        return f"  THE CHECKPOINT OF STEP {self._failed:,} IS NOT SAVED"

    @property
    def failed(self) -> bool:
        """Whether the last save is known to have failed, and none is under way."""
        return self._failed is not None and self._started is None

    def settle(self, step: int, wait: bool = False) -> None:
        """Looks whether the last save has failed, after `step`; the log says so.

        Args:
          step: the last one.
          wait: whether to wait for a save that is under way.
        """
        checkpoints = self._workdir.checkpoints
        try:
            settled = checkpoints.settle(wait)
        except ConfigError as error:
            self._fail(step, error)
        else:
            if settled:
                self._verified()

    def save(self, step: int, state: TrainState, nelbo: float | None = None) -> None:
        """Starts to save a state, which is being written when this returns.

        If it fails, or the save before it did, the log says so. A state that is saved already is
        not saved again.

        Args:
          step: the state's.
          state: of the run.
          nelbo: of the state's validation; None: there is none.
        """
        metadata: dict[str, Any] = {"step": step} | ({} if nelbo is None else {NELBO: nelbo})
        for _ in range(2):  # the first time, the error may be that of the save before
            try:
                latest = self._workdir.checkpoints.latest_step()
                self._verified()
                if latest != step:
                    self._workdir.checkpoints.save(step, state, metadata)
                    self._started = step
                return
            except NotFiniteError:
                raise
            except ConfigError as error:
                self._fail(step, error)

    def complete(self, step: int, state: TrainState, nelbo: float | None = None) -> None:
        """Saves a state, if it is not saved yet, and waits until it is verified.

        Raises:
          ConfigError: it cannot be written.
        """
        checkpoints = self._workdir.checkpoints
        self.save(step, state, nelbo)
        checkpoints.close()
        if checkpoints.latest_step() != step:
            raise ConfigError(
                f"{checkpoints.folder} cannot be written: step {step:,} is not saved; allowed: a "
                "place with space that this user may write to"
            )

    def _verified(self) -> None:
        """Nothing is under way: what was started is saved."""
        if self._started is not None:
            self._started = self._failed = None

    def _fail(self, step: int, error: ConfigError) -> None:
        checkpoints = self._workdir.checkpoints
        checkpoints.abandon()
        # Threads of Orbax may still write there, and do until they see that they cannot.
        with contextlib.suppress(ConfigError):
            checkpoints.remove_unfinished()
        self._started = None
        if self._failed is None:
            self._workdir.log(
                f"step {step:,}: a checkpoint is not saved ({error}); training goes on and tries "
                "again"
            )
        self._failed = step
