"""A run's folder: its configuration, checkpoints, pictures, log and metrics.

======================== ======================================
``config.json``          the configuration of the run
``checkpoints/<step>/``  the state's arrays and a JSON object
``pictures/<name>.png``  grids of images
``log.txt``              what the run said, line by line
``metrics.jsonl``        what it measured, one JSON object a line
``done.json``            the last validation; it is there once training has come to its end
``<mode>/``              what a mode of evaluation has made
======================== ======================================

Every process of a multi-host run opens the same folder, on a shared file system, and makes the same
calls; the first process alone writes configuration, pictures, log and metrics.
"""

import io
import json
import math
import os
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, SupportsFloat

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from numpy.typing import ArrayLike
from PIL import Image


class Workdir:
    """One run's folder, created when it is first used.

    Args:
      path: the folder, also in a bucket (gs://bucket/run).
      max_to_keep: how many checkpoints to keep, always the latest ones.

    Raises:
      ValueError: ``max_to_keep`` is less than 1.
    """

    def __init__(self, path: str | os.PathLike[str], max_to_keep: int = 3):
        if max_to_keep < 1:
            raise ValueError(f"max_to_keep is {max_to_keep}; allowed: 1 or more")
        folder = epath.Path(path)
        self.path: epath.Path = folder if _is_remote(folder) else folder.absolute()
        self._max_to_keep = max_to_keep
        self._manager: ocp.CheckpointManager | None = None

    def save_config(
        self, config: ml_collections.ConfigDict, adjustable: Collection[str] = ()
    ) -> None:
        """Saves the run's configuration; a later one must be the same.

        Args:
          config: the configuration.
          adjustable: dotted names of fields that may change all the same; the latest is kept.

        Raises:
          ValueError: another configuration is saved here; the message lists what differs.
          TypeError: a value has no JSON form.
        """
        path = self.path / "config.json"
        text = json.dumps(config.to_dict(), indent=2) + "\n"
        if path.exists():
            old, new = (
                _named(json.loads(source), is_leaf=lambda value: not isinstance(value, dict))
                for source in (path.read_text(), text)
            )
            changes = [
                f"config.{name} is {new.get(name, 'absent')!r}; saved: {old.get(name, 'absent')!r}"
                for name in old | new
                if name not in adjustable
                and (name not in old or name not in new or old[name] != new[name])
            ]
            if changes:
                raise ValueError("\n  ".join([f"{path} holds another configuration:", *changes]))
        _write(path, text.encode())

    def load_config(self) -> ml_collections.ConfigDict:
        """Returns the saved configuration; tuples come back as lists.

        Raises:
          FileNotFoundError: none is saved.
        """
        return ml_collections.ConfigDict(json.loads((self.path / "config.json").read_text()))

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
          ValueError: ``step`` is not after the latest checkpoint's.
          TypeError: ``metadata`` has no JSON form.
        """
        latest = self.latest_step()
        if latest is not None and step <= latest:
            raise ValueError(f"step {step} is not after the latest checkpoint's, {latest}")
        # A copy, because the caller may change its own while this one is being written.
        metadata = json.loads(json.dumps(metadata))
        items = {"state": ocp.args.PyTreeSave(state), "metadata": ocp.args.JsonSave(metadata)}
        # By force, because the caller decides when to save; Orbax would skip steps silently.
        self._checkpoints().save(step, args=ocp.args.Composite(**items), force=True)

    def restore(
        self, abstract_state: Any, step: int | None = None, *, partial: bool = False
    ) -> tuple[Any, dict[str, Any]]:
        """Restores a checkpoint onto the devices that ``abstract_state`` names.

        Args:
          abstract_state: a pytree of ``jax.ShapeDtypeStruct`` with shardings, over any devices.
          step: which checkpoint; by default the latest.
          partial: leave unread what the checkpoint holds beyond ``abstract_state``. Entries are
            matched by name: a dict's ``"params"`` finds the field ``params`` of a saved dataclass.

        Returns:
          ``(state, metadata)``; ``state`` has the structure of ``abstract_state``.

        Raises:
          FileNotFoundError: there is no such checkpoint.
          ValueError: the checkpoint has other entries, shapes or dtypes, or an entry of
            ``abstract_state`` has no sharding; the message names the first ones.
        """
        latest, manager = self.latest_step(), self._checkpoints()
        step = latest if step is None else step
        if step is None or step not in manager.all_steps():
            raise FileNotFoundError(
                f"no checkpoint {'' if step is None else f'{step} '}in {manager.directory};"
                f" it holds: {', '.join(map(str, manager.all_steps())) or 'none'}"
            )
        saved = manager.metadata(step).item_metadata["state"].tree
        if differences := _differences(saved, abstract_state, partial):
            where = f"checkpoint {step} in {manager.directory}"
            title = f"{where} is not as wanted in {len(differences)} places, the first of them:"
            raise ValueError("\n  ".join([title, *differences[:5]]))
        placed = ocp.checkpoint_utils.construct_restore_args(abstract_state)
        arrays = ocp.args.PyTreeRestore(abstract_state, placed, partial_restore=partial)
        items = ocp.args.Composite(state=arrays, metadata=ocp.args.JsonRestore())
        restored = manager.restore(step, args=items)
        return restored.state, restored.metadata

    def latest_step(self) -> int | None:
        """Returns the latest checkpoint's step, after waiting for the save in progress."""
        self.wait()
        return self._checkpoints().latest_step()

    def wait(self) -> None:
        """Waits for the save in progress, if any, and raises its error if it failed."""
        if self._manager is not None:
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the save in progress and ends Orbax's threads."""
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def _checkpoints(self) -> ocp.CheckpointManager:
        if self._manager is None:
            # Orbax can tell what a checkpoint holds only for handlers it knows beforehand.
            registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
            arrays, json_object = ocp.PyTreeCheckpointHandler(), ocp.JsonCheckpointHandler()
            registry.add("state", ocp.args.PyTreeSave, arrays)
            registry.add("state", ocp.args.PyTreeRestore, arrays)
            registry.add("metadata", ocp.args.JsonSave, json_object)
            registry.add("metadata", ocp.args.JsonRestore, json_object)
            latest = ocp.checkpoint_managers.LatestN(self._max_to_keep)
            self._manager = ocp.CheckpointManager(
                self.path / "checkpoints",
                options=ocp.CheckpointManagerOptions(preservation_policy=latest),
                handler_registry=registry,
            )
        return self._manager

    def save_picture(self, name: str, images: ArrayLike, columns: int | None = None) -> None:
        """Saves ``pictures/<name>.png``, a grid of images as :func:`image_grid` makes it.

        Small images are enlarged by a whole factor, so that people can see them: a side of 32
        pixels becomes one of 64.
        """
        images = np.asarray(images)
        grid = Image.fromarray(image_grid(images, columns))
        factor = max(1, 64 // max(images.shape[1:3]))
        size = (factor * grid.width, factor * grid.height)
        png = io.BytesIO()
        grid.resize(size, Image.Resampling.NEAREST).save(png, format="PNG")
        _write(self.path / "pictures" / f"{name}.png", png.getvalue())

    def write(self, name: str, content: bytes) -> epath.Path:
        """Writes the file ``name`` of this folder as a whole, and returns its path."""
        path = self.path / name
        _write(path, content)
        return path

    def append(self, name: str, line: str) -> None:
        """Appends a line to the file ``name`` of this folder."""
        _append(self.path / name, line)

    def remove(self, name: str) -> None:
        """Removes the file ``name`` of this folder, if it is there."""
        if jax.process_index() == 0:
            (self.path / name).unlink(missing_ok=True)

    def log(self, message: str) -> None:
        """Prints ``message``, and appends it to ``log.txt`` behind the local time."""
        if jax.process_index() == 0:
            print(message, flush=True)
        _append(self.path / "log.txt", f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}")

    def write_metrics(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Appends the record ``{"step": step, name: float, ...}`` to ``metrics.jsonl``.

        Values that are not finite are written as JSON's common extension has them: NaN, Infinity.
        """
        record = {"step": step} | {name: float(value) for name, value in values.items()}
        _append(self.path / "metrics.jsonl", json.dumps(record))

    def read_metrics(self) -> list[dict[str, Any]]:
        """Returns the records of ``metrics.jsonl`` in the order they were written."""
        path = self.path / "metrics.jsonl"
        records = []
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                continue  # A line that was being written when its process was killed.
        return records

    def finish(self, record: Mapping[str, Any]) -> None:
        """Writes ``done.json``: the run has come to its end, with ``record`` as its result."""
        _write(self.path / "done.json", (json.dumps(record, indent=2) + "\n").encode())

    def truncate_metrics(self, step: int) -> None:
        """Drops the records after ``step``, so that a run resumed there writes none twice."""
        kept = [record for record in self.read_metrics() if record["step"] <= step]
        lines = "".join(json.dumps(record) + "\n" for record in kept)
        _write(self.path / "metrics.jsonl", lines.encode())


def image_grid(images: ArrayLike, columns: int | None = None, padding: int = 2) -> np.ndarray:
    """Arranges images on a white sheet, row by row. Pixels that are not finite show as magenta.

    Args:
      images: (N, H, W, C) float in [0, 1] (values outside are clipped), N at least 1, C 1 or 3.
      columns: images in a row; by default as many as make about as many rows.
      padding: white pixels around each image.

    Returns:
      (rows * (H + padding) + padding, columns * (W + padding) + padding, 3) uint8.

    Raises:
      ValueError: ``images`` has another shape or type, or ``columns`` is less than 1.
    """
    images = np.asarray(images)
    shaped = images.ndim == 4 and len(images) and images.shape[-1] in (1, 3)
    if not (shaped and jnp.issubdtype(images.dtype, jnp.floating)):
        raise ValueError(f"images are {_kind(images)}; allowed: float[N > 0, H, W, 1 or 3]")
    count, height, width, _ = images.shape
    if columns is None:
        columns = math.ceil(math.sqrt(count))
    if columns < 1:
        raise ValueError(f"columns is {columns}; allowed: 1 or more")
    images = images.astype(np.float32)
    finite = np.isfinite(images).all(-1, keepdims=True)
    levels = np.where(finite, np.clip(np.nan_to_num(images), 0, 1), (1.0, 0.0, 1.0))
    pixels = np.round(255 * levels).astype(np.uint8)

    rows = math.ceil(count / columns)
    cells = np.full((rows * columns, height + padding, width + padding, 3), 255, np.uint8)
    cells[:count, :height, :width] = pixels
    sheet = cells.reshape(rows, columns, *cells.shape[1:]).swapaxes(1, 2)
    sheet = sheet.reshape(rows * (height + padding), columns * (width + padding), 3)
    return np.pad(sheet, ((padding, 0), (padding, 0), (0, 0)), constant_values=255)


def _named(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """Returns a tree's leaves by their dotted names; a field and a dict's key read the same."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _differences(saved: Any, wanted: Any, partial: bool) -> list[str]:
    """Lists where the tree of arrays ``wanted`` asks for what ``saved`` does not hold."""
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
        differences += [f"{name} is saved but not wanted" for name in held if name not in asked]
    return differences


def _kind(array: Any) -> str:
    return f"{array.dtype}{list(array.shape)}"


def _is_remote(path: epath.Path) -> bool:
    return "://" in os.fspath(path)


def _write(path: epath.Path, content: bytes) -> None:
    """Replaces a file as a whole, on the first process: no reader ever sees half of it."""
    if jax.process_index() != 0:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def _append(path: epath.Path, line: str) -> None:
    """Appends a line, on the first process, clear of what a killed writer left of another."""
    if jax.process_index() != 0:
        return
    if _is_remote(path):  # where there is no appending, nor a file half written
        before = path.read_bytes() if path.exists() else b""
        _write(path, before + line.encode() + b"\n")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.write(b"\n")
        file.write(line.encode() + b"\n")
