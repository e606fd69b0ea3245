"""Checkpoints of a run, by Orbax."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from nvae_jax.errors import ConfigError, reading, require, writing

_OTHER_READS = 1.0  # seconds in which the threads of a failed reading end


class Checkpoints:
    """The folder of a run's checkpoints, created when it is first used.

    Args:
      folder: on a disk or in a bucket.
      max_to_keep: how many checkpoints to keep, always the latest ones.
    """

    def __init__(self, folder: epath.Path, max_to_keep: int):
        require("max_to_keep", max_to_keep, max_to_keep > 0, "1 or more")
        self.folder = folder
        self._max_to_keep = max_to_keep
        self._manager: ocp.CheckpointManager | None = None

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
          ConfigError: the checkpoint cannot be written.
          ValueError: `step` is not after the latest checkpoint's.
          TypeError: `metadata` has no JSON form.
        """
        latest = self.latest_step()
        if latest is not None and step <= latest:
            raise ValueError(f"step {step} is not after the latest checkpoint's, {latest}")
        # A copy, because the caller may change its own while this one is being written.
        metadata = json.loads(json.dumps(metadata))
        items = {"state": ocp.args.PyTreeSave(state), "metadata": ocp.args.JsonSave(metadata)}
        # By force, because the caller decides when to save; Orbax would skip steps silently.
        with writing(self.folder):
            self._open().save(step, args=ocp.args.Composite(**items), force=True)

    def restore(
        self,
        abstract_state: Any,
        step: int | None = None,
        *,
        partial: bool = False,
        optional: str | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Restores a checkpoint onto the devices that `abstract_state` names.

        Args:
          abstract_state: a pytree of `jax.ShapeDtypeStruct` with shardings, over any devices.
          step: which checkpoint; by default the latest.
          partial: leave unread what the checkpoint holds beyond `abstract_state`. Entries are
            matched by name: a dict's `"params"` finds the field `params` of a saved dataclass.
          optional: the name of an entry at the top that may be left unread.

        Returns:
          `(state, metadata)`; `state` has the structure of `abstract_state`.

        Raises:
          ConfigError: there is no such checkpoint, it has other entries, shapes or dtypes, or an
            entry of `abstract_state` has no sharding; the message names the first ones.
        """
        latest, manager = self.latest_step(), self._open()
        step = latest if step is None else step
        if step is None or step not in manager.all_steps():
            steps = ", ".join(map(str, manager.all_steps()))
            raise ConfigError(
                f"{manager.directory} has no checkpoint{'' if step is None else f' {step}'}; "
                f"allowed: {steps or 'a folder with checkpoints'}"
            )
        with self._reading(step):
            saved = manager.metadata(step).item_metadata["state"].tree
        if differences := _differences(saved, abstract_state, partial, optional):
            where = f"checkpoint {step} in {manager.directory}"
            title = f"{where} is not as wanted in {len(differences)} places, the first of them:"
            raise ConfigError(f"{title} {'; '.join(differences[:5])}")
        placed = ocp.checkpoint_utils.construct_restore_args(abstract_state)
        arrays = ocp.args.PyTreeRestore(
            abstract_state, placed, partial_restore=partial or optional is not None
        )
        items = ocp.args.Composite(state=arrays, metadata=ocp.args.JsonRestore())
        with self._reading(step):
            restored = manager.restore(step, args=items)
        return restored.state, restored.metadata

    def entries(self, step: int) -> set[str]:
        """The dotted names of the arrays in a checkpoint."""
        self.wait()
        with self._reading(step):
            return set(_named(self._open().metadata(step).item_metadata["state"].tree))

    def latest_step(self) -> int | None:
        """The latest checkpoint's step, or None, after waiting for the save in progress."""
        self.wait()
        if self._manager is None and not self.folder.exists():  # opening would create it
            return None
        return self._open().latest_step()

    def wait(self) -> None:
        """Waits for the save in progress, if any, and raises its error if it failed."""
        if self._manager is not None:
            with writing(self.folder):
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the save in progress and ends Orbax's threads."""
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        """Refuses damaged files.

        After the first array that cannot be read, the threads that read others print a traceback
        each; what is printed before the refusal is dropped.
        """
        # What Orbax raises for damaged files.
        broken = (ValueError, KeyError, AttributeError, TypeError)
        printed = io.StringIO()
        folder = self.folder / str(step)
        refusing = reading("the checkpoint", folder, "a whole one", *broken)
        with refusing, contextlib.redirect_stderr(printed):
            try:
                yield
            except (OSError, *broken):
                time.sleep(_OTHER_READS)
                raise
        sys.stderr.write(printed.getvalue())

    def _open(self) -> ocp.CheckpointManager:
        if self._manager is None:
            # Orbax can tell what a checkpoint holds only for handlers it knows beforehand.
            registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
            arrays, json_object = ocp.PyTreeCheckpointHandler(), ocp.JsonCheckpointHandler()
            registry.add("state", ocp.args.PyTreeSave, arrays)
            registry.add("state", ocp.args.PyTreeRestore, arrays)
            registry.add("metadata", ocp.args.JsonSave, json_object)
            registry.add("metadata", ocp.args.JsonRestore, json_object)
            latest = ocp.checkpoint_managers.LatestN(self._max_to_keep)
            with writing(self.folder):
                self._manager = ocp.CheckpointManager(
                    self.folder,
                    options=ocp.CheckpointManagerOptions(preservation_policy=latest),
                    handler_registry=registry,
                )
        return self._manager


def _named(tree: Any) -> dict[str, Any]:
    """Returns a tree's leaves by their dotted names; a field and a dict's key read the same."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _differences(saved: Any, wanted: Any, partial: bool, optional: str | None) -> list[str]:
    """Lists where the tree of arrays `wanted` asks for what `saved` does not hold."""
    held, asked = _named(saved), _named(wanted)
    differences = []
    for name, leaf in asked.items():
        if name not in held:
            differences.append(f"{name} is not saved")
        elif (has := _kind(held[name])) != (wants := _kind(leaf)):
            differences.append(f"{name} is {has}; wanted: {wants}")
        elif leaf.sharding is None:
            differences.append(f"{name} is wanted without a sharding")
    if not partial:
        unwanted = [name for name in held if name not in asked and name.split(".")[0] != optional]
        differences += [f"{name} is saved but not wanted" for name in unwanted]
    return differences


def _kind(array: Any) -> str:
    return f"{array.dtype}{list(array.shape)}"
