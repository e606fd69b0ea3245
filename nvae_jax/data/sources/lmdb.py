"""The LMDB files that the original implementation reads.

A split is a file `<split>.lmdb`, or a folder of that name with `data.mdb` in it; the keys are the
examples' numbers from 0 on, in ASCII. A value is an image file (celeba64) or the H * W * C levels
of an image.
"""

import os
import threading
from typing import Any

import numpy as np

from nvae_jax.errors import ConfigError, reason


class LmdbRecords:
    """The values of an LMDB file in the order of their numbers."""

    def __init__(self, path: str):
        """Opens the file and checks that no key is missing, which reads no values.

        Raises:
          ConfigError: the file is missing or not an LMDB file, or its keys are not 0, 1, …
        """
        if not os.path.exists(path):
            raise ConfigError(
                f"data.lmdb is {os.path.dirname(path)!r}, which has no {os.path.basename(path)}; "
                "allowed: a folder with train.lmdb and validation.lmdb"
            )
        import lmdb

        try:
            with _open(path).begin() as transaction:
                keys = set(transaction.cursor().iternext(values=False))
        except (lmdb.Error, OSError) as error:
            raise ConfigError(
                f"data.lmdb has {path}, which cannot be read as LMDB ({reason(error)}); allowed: "
                "whole files of the original implementation"
            ) from error
        missing = [i for i in range(len(keys)) if str(i).encode() not in keys]
        if missing or not keys:
            some = ", ".join(map(str, missing[:5])) or "all"
            raise ConfigError(
                f"{path} lacks {len(missing)} of its {len(keys)} keys, these among them: {some}; "
                "allowed: all numbers from 0 on"
            )
        self._path, self._length = path, len(keys)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int, /) -> bytes:
        with _open(self._path).begin() as transaction:
            return transaction.get(str(index).encode())

    def describe(self, index: int, /) -> str:
        """Where the record is stored, for messages."""
        return f"key {index} of {self._path}"


_opening = threading.Lock()
_opened: dict[str, Any] = {}


def _open(path: str) -> Any:
    """The LMDB environment of a path, which a process may open only once."""
    with _opening:
        if path not in _opened:
            import lmdb

            _opened[path] = lmdb.open(
                path,
                subdir=os.path.isdir(path),
                readonly=True,
                lock=False,
                readahead=False,  # the order is random
                meminit=False,
            )
        return _opened[path]


def read_levels(value: bytes, height: int, width: int, channels: int) -> np.ndarray:
    """An image that is stored as its levels, row by row.

    Raises:
      ValueError: another number of bytes than `height` * `width` * `channels`.
    """
    number = height * width * channels
    if len(value) != number:
        raise ValueError(f"{len(value)} bytes; allowed: {height} * {width} * {channels} = {number}")
    return np.frombuffer(value, np.uint8).reshape(height, width, channels)
