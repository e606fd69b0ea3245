"""Orbax as checkpoints use it: what they are made of, and what it does where files are damaged."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from nvae_jax.errors import ConfigError, reading, reason, writing
from nvae_jax.workdir.integrity import (
    METADATA,
    DamagedError,
    NotFiniteError,
    compare,
    first_few,
    inspected,
)

_OTHER_READS = 1.0  # seconds in which the threads of a failed reading end


def open_manager(folder: epath.Path) -> ocp.CheckpointManager:
    """The manager of a folder, which deletes nothing of itself.

    A checkpoint has the items `state` (arrays), `metadata` and `checksums` (JSON).
    """
    # Orbax can tell what a checkpoint holds only for handlers it knows beforehand.
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    arrays, json_object = ocp.PyTreeCheckpointHandler(), ocp.JsonCheckpointHandler()
    registry.add("state", ocp.args.PyTreeSave, arrays)
    registry.add("state", ocp.args.PyTreeRestore, arrays)
    for name in ("metadata", "checksums"):
        registry.add(name, ocp.args.JsonSave, json_object)
        registry.add(name, ocp.args.JsonRestore, json_object)
    with writing(folder):
        return ocp.CheckpointManager(
            folder, options=ocp.CheckpointManagerOptions(), handler_registry=registry
        )


def read_arrays(folder: epath.Path) -> Any:
    """The tree of a checkpoint's item `state` in the host's memory, read by this process alone."""
    handler = ocp.PyTreeCheckpointHandler()
    tree = handler.metadata(folder).tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return handler.restore(folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy))


def read_json(folder: epath.Path) -> dict[str, Any]:
    """A checkpoint's item of JSON, read by this process alone."""
    return ocp.JsonCheckpointHandler().restore(folder, args=ocp.args.JsonRestore())


def verify(where: str, folder: epath.Path) -> None:
    """Reads a checkpoint back into the host's memory, without the other processes.

    Args:
      where: what messages call it.
      folder: of the checkpoint.

    Raises:
      DamagedError: it does not hold what was saved in it.
      NotFiniteError: it holds numbers that are not finite.
    """
    with reading_checkpoint(folder):
        state, checksums = read_arrays(folder / "state"), read_json(folder / "checksums")
    saved = {name: x for name, x in checksums.items() if name != METADATA}
    read, bad = inspected(state)
    # What was saved and is not there any more has no checksum.
    compare(where, saved, dict.fromkeys(saved) | read)
    if bad:
        raise NotFiniteError(f"{where} is not finite in {first_few(bad)}; allowed: a finite one")


@contextlib.contextmanager
def writing_checkpoint(folder: epath.Path) -> Iterator[None]:
    """Refuses what cannot be written; Orbax raises all kinds of errors for it."""
    with writing(folder):
        try:
            yield
        except (ConfigError, OSError):
            raise
        except Exception as error:
            cause = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise OSError(cause) from error


@contextlib.contextmanager
def reading_checkpoint(folder: epath.Path) -> Iterator[None]:
    """Turns what Orbax raises for damaged files into a `DamagedError`.

    After the first array that cannot be read, the threads that read others print a traceback each;
    what is printed before the refusal is dropped.
    """
    printed = io.StringIO()
    with reading("the checkpoint", folder, "a whole one"), contextlib.redirect_stderr(printed):
        try:
            yield
        except (PermissionError, KeyboardInterrupt):
            raise
        except Exception as error:  # Orbax raises all kinds for damaged files
            # Reads that nobody waits for any more would be reported when they are collected.
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)
            time.sleep(_OTHER_READS)
            raise DamagedError(
                f"the checkpoint {os.fspath(folder)} cannot be read ({reason(error)}); "
                "allowed: a whole one"
            ) from error
    sys.stderr.write(printed.getvalue())
