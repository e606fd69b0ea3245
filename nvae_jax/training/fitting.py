"""Whether the compiled update fits the memory of the devices, known before it runs."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from nvae_jax.config.training import TrainingConfig
from nvae_jax.errors import ConfigError
from nvae_jax.memory import machine_memory
from nvae_jax.training.state import TrainState

GIB = 2**30
IGNORE = "--ignore_memory to try it all the same"


def program_memory(compiled: Any) -> int:
    """Bytes that a compiled program requires per device, all together.

    They are those of its arguments, temporaries, results that do not overwrite arguments, and of
    the program itself.
    """
    memory = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.generated_code_size_in_bytes
    )


def required_memory(program: float, platform: str, devices: int) -> float:
    """Bytes that a run requires per device, from those of its compiled update.

    On CPU, blocks of the allocator do not fit each other, and devices share what the process needs
    for Python, JAX, the data and what the compiler leaves behind. The figures are estimates: a
    program of 16.7 GiB was killed at 19.5 GiB before it was done growing.
    """
    if platform == "cpu":
        return program * 1.25 + 2.5 * GIB / devices
    return program * 1.05 + 0.25 * GIB


def device_memory(devices: Any) -> float | None:
    """Bytes of memory of each device; None: unknown. Devices of a CPU share the machine's."""
    if devices[0].platform == "cpu":
        return machine_memory() / len(devices)
    return (devices[0].memory_stats() or {}).get("bytes_limit")


def check_state(state: TrainState, mesh: Mesh) -> None:
    """Checks, before anything is compiled, that the devices can hold a run's state and a gradient.

    Args:
      state: shapes with shardings, as in `Program`.
      mesh: the devices.

    Raises:
      ConfigError: they cannot.
    """
    device, limit = mesh.devices.flat[0], device_memory(mesh.devices.flatten())
    required = _bytes(state) + _bytes(state.params)
    if limit is None or required <= limit:
        return
    count = sum(x.size for x in jax.tree.leaves(state.params))
    raise ConfigError(
        f"a model of {count:,} parameters and its optimiser need {required / GIB:.1f} GiB of "
        f"memory, of which {device.device_kind} has {limit / GIB:.1f}; allowed: a smaller model, "
        f"parameter_shards on several devices, or {IGNORE}"
    )


def _bytes(tree: Any) -> int:
    """Of a tree of shapes on each device."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def check_memory(compiled: Any, mesh: Mesh, training: TrainingConfig) -> None:
    """Checks that the compiled update of a run fits the devices.

    Raises:
      ConfigError: it does not; the message has the flags with which it would.
    """
    device = mesh.devices.flat[0]
    limit = device_memory(mesh.devices.flatten())
    program = program_memory(compiled)
    if limit is None:
        return
    required = required_memory(program, device.platform, mesh.size)
    if required <= limit:
        return
    memory = compiled.memory_analysis()
    raise ConfigError(
        f"an update of training.batch_size {training.batch_size} needs "
        f"{required / GIB:.1f} GiB of memory, of which "
        f"{device.device_kind} has {limit / GIB:.1f}; allowed: "
        f"{advice(memory, limit, device.platform, mesh.size, training)}, or {IGNORE}"
    )


@contextlib.contextmanager
def refusing_exhausted() -> Iterator[None]:
    """Around compilation and updates: too little memory of a device is refused.

    Raises:
      ConfigError: the compiler or a device found that the memory is too small.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")
        raise ConfigError(
            f"the update does not fit the memory ({reason}); allowed: a smaller "
            "--config.training.batch_size, or what python -m nvae_jax.tools.aot --fit finds"
        ) from error


def advice(memory: Any, limit: float, platform: str, devices: int, training: TrainingConfig) -> str:
    """The flags with which an update would fit.

    Temporaries are those of the images of one part of a batch, and grow with their number.
    """
    images = training.batch_size // devices
    fixed = memory.argument_size_in_bytes
    per_image = memory.temp_size_in_bytes / (images // training.accumulation_steps)

    def fits(number: int) -> bool:
        return required_memory(fixed + number * per_image, platform, devices) <= 0.95 * limit

    found = []
    if platform != "cpu":  # on which recomputation saves nothing
        found.append("--config.model.remat=group")
    parts = [n for n in range(1, images + 1) if images % n == 0 and fits(images // n)]
    if parts:
        found.append(f"--config.training.accumulation_steps={parts[0]}")
    sizes = [n for n in range(1, images) if fits(n)]
    if sizes:
        found.append(f"--config.training.batch_size={sizes[-1] * devices}")
    found.append("smaller images or a smaller model")
    return ", or ".join(found)
