"""Devices as a mesh, and how arrays lie on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nvae_jax.errors import ConfigError, require

DATA = "data"  # the mesh axis whose devices share a batch
SHARDS = "shards"  # the axis whose devices share a batch and one copy of the parameters

# Arrays of fewer values stay whole on every device: fetching them costs more than it saves.
SMALLEST_SHARDED = 2**14


def make_mesh(devices: Sequence[Any] | None = None, parameter_shards: int = 1) -> Mesh:
    """A mesh of the axes `data` and `shards` over `devices` (all there are, by default).

    Args:
      devices: of one platform.
      parameter_shards: length of the second axis, neighbours on the interconnect.

    Raises:
      ConfigError: `parameter_shards` does not divide the number of devices, or JAX_PLATFORMS asks
        for devices that there are not.
    """
    devices = _all_devices() if devices is None else devices
    allowed = f"divisors of the number of devices ({len(devices)})"
    divides = len(devices) % parameter_shards == 0
    require("training.parameter_shards", parameter_shards, divides, allowed)
    shape = (len(devices) // parameter_shards, parameter_shards)
    grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, (DATA, SHARDS))


def _all_devices() -> Sequence[Any]:
    try:
        return jax.devices()
    except (RuntimeError, AssertionError):  # of a package of JAX that lacks the platform
        platforms = jax.config.jax_platforms  # type: ignore[attr-defined]
        require("JAX_PLATFORMS", platforms, not platforms, "platforms of this machine, or unset")
        raise


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
    """Raises a ConfigError that names `field` unless all devices share every part equally."""
    if batch_size % (mesh.size * parts):
        times = f" times training.accumulation_steps ({parts})" if parts > 1 else ""
        raise ConfigError(
            f"{field} is {batch_size}; allowed: multiples of the number of devices ({mesh.size})"
            f"{times}"
        )


def shard_batch(mesh: Mesh, batch: Any) -> Any:
    """Global arrays from this process's part of a batch, a tree of (B_local, …) NumPy arrays."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch
    )
