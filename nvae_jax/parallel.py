"""Devices as a mesh, and how arrays lie on it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

DATA = "data"  # the mesh axis that divides a batch


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over `devices` (all there are, by default) with the axis `data`."""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), (DATA,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Devices share the leading axis of an array."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def check_batch_size(mesh: Mesh, batch_size: int, field: str) -> None:
    """Raises ValueError, naming `field`, if the devices cannot share a batch equally."""
    if batch_size % mesh.size:
        raise ValueError(
            f"{field} is {batch_size}; allowed: multiples of the number of devices ({mesh.size})"
        )


def shard_batch(mesh: Mesh, batch: Any) -> Any:
    """Global arrays from this process's part of a batch, a tree of (B_local, …) NumPy arrays."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch
    )


def keep_freed_memory() -> None:
    """Makes this process keep the memory that it frees, where the C library is glibc.

    XLA's CPU backend allocates its temporaries anew at every step; by default the system takes the
    pages back in between and must clear them again: a cell's gradient was 1.5 times slower so.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return  # not glibc
    trim_threshold, mmap_max, arena_max = -1, -4, -8
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(arena_max, 1)


def keep_compiled_programs() -> None:
    """Has JAX keep what it compiles in the user's cache folder, so that the next start is faster.

    `JAX_COMPILATION_CACHE_DIR` names another folder.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        jax.config.update("jax_compilation_cache_dir", os.path.join(cache, "nvae_jax", "xla"))
