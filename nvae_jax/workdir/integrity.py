"""Whether saved arrays are what they were: their names, checksums, kinds, and whether finite."""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from nvae_jax.errors import ConfigError

METADATA = "(metadata)"  # among the names of arrays that have a checksum


class DamagedError(ConfigError):
    """A checkpoint does not hold what was saved in it, or not what is wanted of it."""


class NotFiniteError(ConfigError):
    """A checkpoint holds numbers that are not finite."""


def named(tree: Any) -> dict[str, Any]:
    """A tree's leaves by their dotted names; a field and a dict's key read the same."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def inspected(tree: Any) -> tuple[dict[str, int], list[str]]:
    """What there is to know of a tree's arrays, however they are divided among devices.

    Returns: the CRC-32 of every array's bytes by its name, and the names of the arrays in which a
      number is NaN or infinite.
    """
    checksums, bad = {}, []
    for name, leaf in named(tree).items():  # one array at a time in the host's memory
        array = on_host(leaf)
        checksums[name] = zlib.crc32(_bytes(array))
        if not _is_finite(array):
            bad.append(name)
    return checksums, bad


def metadata_checksum(metadata: Mapping[str, Any]) -> dict[str, int]:
    """The CRC-32 of a checkpoint's metadata, beside those of its arrays."""
    return {METADATA: zlib.crc32(json.dumps(metadata, sort_keys=True).encode())}


def compare(where: str, saved: Mapping[str, int], read: Mapping[str, int | None]) -> None:
    """Compares the checksums of what was read with those that were saved.

    Raises:
      DamagedError: there are others.
    """
    changed = [name for name, value in read.items() if saved.get(name) != value]
    if changed:
        raise DamagedError(
            f"{where} is damaged: {len(changed)} of {len(read)} arrays are not what was saved "
            f"({first_few(changed)}); allowed: a whole one"
        )


def differences(
    saved: Any, wanted: Any, partial: bool = False, optional: Collection[str] = ()
) -> list[str]:
    """Where the tree of arrays `wanted` asks for what the tree `saved` does not hold.

    Args:
      saved: a tree of arrays or their descriptions.
      wanted: a tree of `jax.ShapeDtypeStruct` with shardings.
      partial: whether `saved` may hold more.
      optional: the names of entries at the top of which it may.
    """
    held, asked = named(saved), named(wanted)
    found = []
    for name, leaf in asked.items():
        if name not in held:
            found.append(f"{name} is not saved")
        elif (has := _kind(held[name])) != (wants := _kind(leaf)):
            found.append(f"{name} is {has}; wanted: {wants}")
        elif leaf.sharding is None:
            found.append(f"{name} is wanted without a sharding")
    if not partial:
        unwanted = [name for name in held if name.split(".")[0] not in optional]
        found += [f"{name} is saved but not wanted" for name in unwanted if name not in asked]
    return found


def first_few(names: Iterable[str], number: int = 5) -> str:
    """A list of names for a message."""
    names = list(names)
    return ", ".join(names[:number]) + (
        f" and {len(names) - number} more" if names[number:] else ""
    )


def _kind(array: Any) -> str:
    return f"{array.dtype}{list(array.shape)}"


def _bytes(array: np.ndarray) -> Any:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _is_finite(array: np.ndarray) -> bool:
    # Floats of JAX's own types, which NumPy does not count among its floating ones, too.
    return array.dtype.kind not in "fV" or bool(np.isfinite(array).all())


def on_host(array: Any) -> np.ndarray:
    """The whole array; nothing is left behind that would keep it from being donated."""
    if not isinstance(array, jax.Array):
        return np.asarray(array)
    if array.is_fully_replicated:
        return np.asarray(array.addressable_data(0))
    if not array.is_fully_addressable:
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    whole = np.empty(array.shape, array.dtype)
    for shard in array.addressable_shards:
        whole[shard.index] = shard.data
    return whole
