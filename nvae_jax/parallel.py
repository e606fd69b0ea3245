"""Devices as a mesh, and how arrays lie on it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

DATA = "data"  # the mesh axis whose devices share a batch
SHARDS = "shards"  # the axis whose devices share a batch and one copy of the parameters

# Arrays of fewer values stay whole on every device: fetching them costs more than it saves.
SMALLEST_SHARDED = 2**14


def make_mesh(devices: Sequence[Any] | None = None, parameter_shards: int = 1) -> Mesh:
    """A mesh of the axes `data` and `shards` over `devices` (all there are, by default).

    Args:
      devices: of one platform.
      parameter_shards: length of the second axis, neighbours on the interconnect.

    Raises: ValueError if `parameter_shards` does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if len(devices) % parameter_shards:
        raise ValueError(
            f"training.parameter_shards is {parameter_shards}; allowed: divisors of the number of "
            f"devices ({len(devices)})"
        )
    shape = (len(devices) // parameter_shards, parameter_shards)
    grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, (DATA, SHARDS))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Devices share the leading axis of an array."""
    return NamedSharding(mesh, PartitionSpec((DATA, SHARDS)))


def state_sharding(mesh: Mesh, state: Any) -> Any:
    """How parameters, and whatever has their shapes, lie on the devices.

    Large arrays are divided along the mesh axis `shards`, in their last axis that it divides; the
    first axis of stacked kernels stays whole, so that a loop finds every group on each device.

    Args:
      mesh: the devices.
      state: a pytree of arrays or their shapes.

    Returns: the pytree of shardings.
    """
    shards = mesh.shape[SHARDS]

    def sharding(x: Any) -> NamedSharding:
        axes = [axis for axis in range(max(x.ndim - 4, 0), x.ndim) if x.shape[axis] % shards == 0]
        if shards == 1 or not axes or x.size < SMALLEST_SHARDED:
            return replicated(mesh)
        return NamedSharding(mesh, PartitionSpec(*[None] * axes[-1], SHARDS))

    return jax.tree.map(sharding, state)


def check_batch_size(mesh: Mesh, batch_size: int, field: str, parts: int = 1) -> None:
    """Raises ValueError, naming `field`, unless every device gets as many images in every part."""
    if batch_size % (mesh.size * parts):
        times = f" times training.accumulation_steps ({parts})" if parts > 1 else ""
        raise ValueError(
            f"{field} is {batch_size}; allowed: multiples of the number of devices ({mesh.size})"
            f"{times}"
        )


def jit_on(mesh: Mesh, function: Callable[..., Any], **options: Any) -> Any:
    """`jax.jit` of a function that runs on a mesh, as the compiler does best on its platform.

    Args:
      mesh: the devices.
      function: to compile.
      options: of `jax.jit`.
    """
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return jax.jit(function, compiler_options=_cpu_options() if on_cpu else {}, **options)


@functools.cache
def _cpu_options() -> dict[str, str]:
    """Compiler options for CPU; none where this version of XLA does not know them."""
    # What XLA leaves to YNNPACK: its own list but for convolutions, which stay on one core there if
    # they have 64 channels or fewer.
    options = {
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,"
        "LIBRARY_FUSION_TYPE_REDUCE"
    }
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options


def shard_batch(mesh: Mesh, batch: Any) -> Any:
    """Global arrays from this process's part of a batch, a tree of (B_local, …) NumPy arrays."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch
    )


def usable_cores() -> int:
    """Cores that this process may use, which may be fewer than there are."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def keep_compiled_programs() -> None:
    """Has JAX keep what it compiles in the user's cache folder, so that the next start is faster.

    `JAX_COMPILATION_CACHE_DIR` names another folder, and
    `JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS` keeps only programs that took so long.
    """
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # A start compiles dozens of programs of one operation each, which together take seconds.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        # A program for CPU is divided between the cores that compiling it could use, and JAX's key
        # does not tell: one compiled on a single core would stay on a single core everywhere.
        folder = f"xla_{usable_cores()}_cores"
        jax.config.update("jax_compilation_cache_dir", os.path.join(cache, "nvae_jax", folder))
