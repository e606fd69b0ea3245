"""Checkpoints of a run, by Orbax: verified after they are written and when they are read."""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath

from nvae_jax.errors import ConfigError
from nvae_jax.processes import decided, failing_together
from nvae_jax.workdir.checkpoint_folder import CheckpointFolder
from nvae_jax.workdir.integrity import (
    DamagedError,
    NotFiniteError,
    compare,
    differences,
    first_few,
    inspected,
    metadata_checksum,
    named,
)
from nvae_jax.workdir.orbax import (
    open_manager,
    reading_checkpoint,
    writing_checkpoint,
)
from nvae_jax.workdir.retention import Keep

T = TypeVar("T")

_FORMAT = "format"  # among the metadata


class Checkpoints:
    """The folder of a run's checkpoints, created when it is first used.

    Args:
      folder: on a disk or in a bucket.
      keep: which of them to keep.

    Raises:
      ConfigError: there is a file of that name.
    """

    def __init__(self, folder: epath.Path, keep: Keep = Keep()):  # noqa: B008 - it is frozen
        self._on_disk = CheckpointFolder(folder)
        self.folder = folder
        self._keep = keep
        self._comparable_after = 0
        self._manager: ocp.CheckpointManager | None = None
        self._unverified: int | None = None  # the step of the last save, until it is verified

    def save(self, step: int, state: Any, metadata: Mapping[str, Any]) -> None:
        """Starts to save a checkpoint, and returns while it is being written.

        The arrays may be donated or deleted right after. Until the checkpoint is complete, nothing
        sees it: a killed process leaves the one before as the latest. If the save before this one
        failed, this call raises its error.

        Args:
          step: a step after the latest checkpoint's.
          state: a pytree of arrays, without PRNG keys.
          metadata: an object with a JSON form; the first process's is written.

        Raises:
          ConfigError: the checkpoint cannot be written, or the one before is not as it was saved.
          NotFiniteError: the state is not finite; nothing is saved.
          ValueError: `step` is not after the latest checkpoint's.
          TypeError: `metadata` has no JSON form.
        """
        latest = self.latest_step()
        if latest is not None and step <= latest:
            raise ValueError(f"step {step} is not after the latest checkpoint's, {latest}")
        checksums, bad = inspected(state)
        if bad:
            raise NotFiniteError(f"step {step} is not finite in {first_few(bad)}; allowed: numbers")
        # A copy, because the caller may change its own while this one is being written.
        metadata = json.loads(json.dumps(metadata)) | {_FORMAT: 2}
        items = {
            "state": ocp.args.PyTreeSave(state),
            "metadata": ocp.args.JsonSave(metadata),
            "checksums": ocp.args.JsonSave(checksums | metadata_checksum(metadata)),
        }
        # By force, because the caller decides when to save; Orbax would skip steps silently.
        with failing_together(), writing_checkpoint(self.folder):
            self._open().save(step, args=ocp.args.Composite(**items), force=True)
        self._unverified = step

    def restore(
        self,
        abstract_state: Any,
        step: int | None = None,
        *,
        partial: bool = False,
        optional: Collection[str] = (),
    ) -> tuple[Any, dict[str, Any]]:
        """Restores a checkpoint onto the devices that `abstract_state` names, and verifies it.

        Args:
          abstract_state: a pytree of `jax.ShapeDtypeStruct` with shardings, over any devices.
          step: which checkpoint; by default the latest.
          partial: leave unread what the checkpoint holds beyond `abstract_state`. Entries are
            matched by name: a dict's `"params"` finds the field `params` of a saved dataclass.
          optional: the names of entries at the top that may be left unread.

        Returns:
          `(state, metadata)`; `state` has the structure of `abstract_state`.

        Raises:
          ConfigError: there is no such checkpoint, or it is whole and has other entries, shapes or
            dtypes than `abstract_state`; the message names the first ones.
          DamagedError: its files are broken, or an array is not what was saved.
          NotFiniteError: it holds numbers that are not finite; the message names the arrays.
        """
        latest, manager = self.latest_step(), self._open()
        step = latest if step is None else step
        if step is None or step not in self.steps():
            steps = ", ".join(map(str, self.steps()))
            raise ConfigError(
                f"{manager.directory} has no checkpoint{'' if step is None else f' {step}'}; "
                f"allowed: {steps or 'a folder with checkpoints'}"
            )
        where = self._on_disk.name(step)
        with self._reading(step):
            tree = manager.metadata(step).item_metadata["state"].tree
        if found := differences(tree, abstract_state, partial, optional):
            # What is damaged may look like what is different.
            decided(functools.partial(self._on_disk.check, step))
            raise ConfigError(
                f"{where} is another model's or another version's, not as wanted in "
                f"{len(found)} places, the first of them: {'; '.join(found[:5])}"
            )
        placed = ocp.checkpoint_utils.construct_restore_args(abstract_state)
        arrays = ocp.args.PyTreeRestore(
            abstract_state, placed, partial_restore=partial or bool(optional)
        )
        items = {"state": arrays, "metadata": ocp.args.JsonRestore()}
        has_checksums = self._on_disk.has_checksums(step)
        if has_checksums:
            items["checksums"] = ocp.args.JsonRestore()
        with self._reading(step):
            restored = manager.restore(step, args=ocp.args.Composite(**items))
        checksums, bad = inspected(restored.state)
        if has_checksums:
            compare(where, restored.checksums, checksums | metadata_checksum(restored.metadata))
        elif _FORMAT in restored.metadata:  # the first format has none
            raise DamagedError(f"{where} has lost its checksums; allowed: a whole one")
        if bad:
            raise NotFiniteError(
                f"{where} is not finite in {first_few(bad)}; allowed: a finite one"
            )
        return restored.state, {k: v for k, v in restored.metadata.items() if k != _FORMAT}

    def newest(
        self, read: Callable[[int], T], *skipped: type[ConfigError]
    ) -> tuple[T, dict[int, ConfigError]]:
        """What `read` makes of the newest checkpoint that it can read.

        Args:
          read: reads the checkpoint of a step.
          *skipped: its errors at which an older one is tried.

        Returns: that, and what was wrong with the checkpoint of each step after it.

        Raises:
          ConfigError: there is no checkpoint, or none that can be read.
        """
        errors: dict[int, ConfigError] = {}
        self.wait()
        for step in sorted(decided(self.steps), reverse=True):
            try:
                if jax.process_count() > 1:  # of which each may find another part damaged
                    decided(functools.partial(self._on_disk.check, step))
                return read(step), errors
            except skipped as error:
                errors[step] = error
        if errors:
            raise next(iter(errors.values()))
        raise ConfigError(f"{self.folder} has no checkpoint; allowed: a folder with checkpoints")

    def set_aside(self, steps: Iterable[int]) -> list[epath.Path]:
        """Moves checkpoints out of the way, and returns where they are then."""
        self.abandon()
        return decided(lambda: [self._on_disk.move_aside(step) for step in steps])

    def entries(self, step: int) -> set[str]:
        """The dotted names of the arrays in a checkpoint."""
        self.wait()
        with self._reading(step):
            return set(named(self._open().metadata(step).item_metadata["state"].tree))

    def steps(self) -> list[int]:
        """The checkpoints' steps, after waiting for the save in progress."""
        self.wait()
        return self._on_disk.steps()

    def strays(self) -> list[int]:
        """The steps whose folders hold no checkpoint, after waiting for the save in progress."""
        self.wait()
        return self._on_disk.strays()

    def latest_step(self) -> int | None:
        """The latest checkpoint's step, or None, after waiting for the save in progress."""
        return max(self.steps(), default=None)

    def settle(self, wait: bool = True) -> bool:
        """Does what `wait` does, if the last save has ended already or `wait` is set.

        Several processes, which may see that at different times, leave it to the next save.

        Returns: whether no save is under way.
        """
        if self._manager is None:
            return True
        if not wait and (jax.process_count() > 1 or self._manager.is_saving_in_progress()):
            return False
        self.wait()
        return True

    def wait(self) -> None:
        """Waits for the save in progress, if any, verifies it, and deletes what it replaces.

        Raises:
          ConfigError: it could not be written.
          DamagedError: what was read back is not what was saved.
        """
        if self._manager is None:
            return
        step, self._unverified = self._unverified, None
        together = contextlib.nullcontext() if step is None else failing_together()
        with together, writing_checkpoint(self.folder):
            self._manager.wait_until_finished()
        if step is not None:
            try:
                decided(functools.partial(self._on_disk.verify, step))
            except DamagedError as error:
                (place,) = self.set_aside([step])
                raise DamagedError(f"{error}; it is in {os.fspath(place)} now") from error
            self._prune()

    def close(self) -> None:
        """Waits for the save in progress as `wait` does, and ends Orbax's threads."""
        try:
            self.wait()
        finally:
            self.abandon()

    def compare_after(self, step: int) -> None:
        """Lets no checkpoint up to `step` be the best, once a later one is validated.

        The NELBO of the earlier ones is that of other settings or images.
        """
        self._comparable_after = step

    def abandon(self) -> None:
        """Ends Orbax's threads, whatever became of the save in progress."""
        manager, self._manager, self._unverified = self._manager, None, None
        if manager is not None:
            with contextlib.suppress(Exception):  # the save's, which `wait` has raised or will not
                manager.close()

    def remove_unfinished(self) -> None:
        """Removes what killed or failed saves have left; the first process does it."""
        if jax.process_index() == 0:
            self._on_disk.remove_unfinished()

    def _prune(self) -> None:
        manager = self._open()
        steps = list(manager.all_steps())
        superseded = decided(
            lambda: self._keep.superseded(self.folder, steps, self._comparable_after)
        )
        for step in superseded:
            with writing_checkpoint(self.folder):
                manager.delete(step)

    def _reading(self, step: int) -> contextlib.AbstractContextManager[None]:
        return reading_checkpoint(self._on_disk[step])

    def _open(self) -> ocp.CheckpointManager:
        if self._manager is None:
            self._manager = open_manager(self.folder)
        return self._manager
