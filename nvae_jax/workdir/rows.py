"""Numbers that are computed item by item and kept, so that interrupted work can go on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from nvae_jax.errors import require
from nvae_jax.workdir.files import append, remove, write


class Rows:
    """Rows of float32 in `<name>.f32`, beside `<name>.json`, which says what they are of.

    Rows that are there with another description are discarded.

    Args:
      folder: of the run.
      name: of the files, without their suffixes.
      width: numbers per row.
      description: an object with a JSON form: all that decides the numbers.
    """

    def __init__(self, folder: epath.Path, name: str, width: int, description: Mapping[str, Any]):
        self._width = width
        self._data, self._description = folder / f"{name}.f32", folder / f"{name}.json"
        text = json.dumps(description, indent=1).encode()
        known = self._data.exists() and self._description.exists()
        same = known and self._description.read_bytes() == text
        rows = read_rows(self._data, width) if same else np.zeros((0, width), np.float32)
        self._parts = [rows]
        # The description is removed in between: it must never stand beside the rows of another.
        # They are written anew, so that no row that was cut off stays.
        if not same:
            remove(self._description)
        write(self._data, rows.tobytes())
        write(self._description, text)

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    @property
    def values(self) -> np.ndarray:
        """All rows so far, (N, width)."""
        return np.concatenate(self._parts)

    def append(self, rows: np.ndarray) -> None:
        """Keeps further rows, (n, width)."""
        rows = np.asarray(rows, np.float32).reshape(-1, self._width)
        append(self._data, rows.tobytes())
        self._parts.append(rows)

    def remove(self) -> None:
        """Removes the files, once they are of no more use."""
        for path in (self._description, self._data):
            remove(path)


def read_rows(path: epath.Path, width: int) -> np.ndarray:
    """The whole rows of a file, (N, width) float32."""
    content = path.read_bytes()
    require("the width of rows", width, width > 0, "1 or more")
    rows = len(content) // (4 * width)
    return np.frombuffer(content[: rows * 4 * width], np.float32).reshape(rows, width)
