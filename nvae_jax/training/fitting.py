"""Whether the compiled update fits the memory of the devices, known before it runs."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from nvae_jax.config.changes import ACCEPT
from nvae_jax.config.run import RunConfig
from nvae_jax.errors import ConfigError, refusing_exhausted
from nvae_jax.fields import names_of
from nvae_jax.memory import usable_memory
from nvae_jax.model.vae import VAEConfig
from nvae_jax.training.state import TrainState

GIB = 2**30
IGNORE = "--ignore_memory to try it all the same"
_MARGIN = 0.95  # of the memory that advice fills
_FACTORS = (2, 4, 8)  # by which advice divides sides and channels
_CHANNELS = ("encoder_channels", "decoder_channels", "widths")  # fields of the families


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
    """Bytes of memory of each device; None: unknown. Devices of a CPU share `usable_memory`."""
    if devices[0].platform == "cpu":
        return usable_memory() / len(devices)
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
        f"memory, of which {device.device_kind} has {limit / GIB:.1f} free; allowed: smaller "
        "--config.model.encoder_channels and --config.model.decoder_channels in a new run, "
        f"--config.training.parameter_shards on several devices, or {IGNORE}"
    )


def _bytes(tree: Any) -> int:
    """Of a tree of shapes on each device."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def check_memory(compiled: Any, mesh: Mesh, run: RunConfig, trained: bool) -> None:
    """Checks that the compiled update of a run fits the devices.

    Args:
      compiled: the update.
      mesh: the devices.
      run: the run.
      trained: whether it has a checkpoint, so that it requires consent to changes.

    Raises:
      ConfigError: it does not; the message has the flags with which it would.
    """
    device = mesh.devices.flat[0]
    limit = device_memory(mesh.devices.flatten())
    if limit is None:
        return
    required = required_memory(program_memory(compiled), device.platform, mesh.size)
    if required <= limit:
        return
    flags = advice(compiled, limit, device.platform, mesh.size, run, trained)
    raise ConfigError(
        f"an update of training.batch_size {run.training.batch_size} needs "
        f"{required / GIB:.1f} GiB of memory, of which "
        f"{device.device_kind} has {limit / GIB:.1f} free; allowed: "
        f"{', or '.join(flags) or 'a device with more memory'}, or {IGNORE}"
    )


def refusing_an_exhausted_update(trained: bool) -> contextlib.AbstractContextManager[None]:
    """Around compilation and updates: too little memory of a device is refused.

    Args:
      trained: as for `check_memory`.
    """
    consent = f" with {ACCEPT}" if trained else ""
    return refusing_exhausted(
        "the update",
        f"a smaller --config.training.batch_size{consent}, a larger "
        f"--config.training.accumulation_steps{consent}, or what python -m nvae_jax.tools.aot "
        "--fit finds",
    )


def advice(
    compiled: Any, limit: float, platform: str, devices: int, run: RunConfig, trained: bool
) -> list[str]:
    """The flags, each of them enough, with which an update is expected to fit.

    Temporaries grow with the images of one part of a batch, their pixels and the channels, and
    parameters with the square of the channels.

    Args:
      compiled: the update, which requires more than `limit` bytes per device.
      limit: bytes.
      platform: of the devices.
      devices: how many share the update.
      run: the run.
      trained: as for `check_memory`; the model of such a run stays as it is.
    """
    memory, training = compiled.memory_analysis(), run.training
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    rest = program_memory(compiled) - arguments - temporaries

    def fits(temporary: float, argument: float = 1.0) -> bool:
        program = rest + argument * arguments + temporary * temporaries
        return required_memory(program, platform, devices) <= _MARGIN * limit

    found = []
    # On CPU neither recomputation nor parts save memory, because XLA runs the parts of an unrolled
    # loop side by side. How much recomputation saves elsewhere only its compilation tells.
    more_remat = {"none": "group", "cell": "group", "group": "offload"}
    further = more_remat.get(run.model.remat)
    if platform != "cpu" and recomputes(run.model) and further is not None:
        found.append(f"--config.model.remat={further} (as far as that goes)")
    consent = f"{ACCEPT} " if trained else ""
    images, parts = training.batch_size // devices, training.accumulation_steps
    numbers = range(parts + 1, images + 1)
    more = next((n for n in numbers if images % n == 0 and fits(parts / n)), None)
    if platform != "cpu" and more is not None:
        found.append(f"{consent}--config.training.accumulation_steps={more}")
    sizes = reversed(range(parts, images, parts))
    smaller = next((size for size in sizes if fits(size / images)), None)
    if smaller is not None:
        found.append(f"{consent}--config.training.batch_size={smaller * devices}")
    if trained:
        return found
    size = _smaller_images(run, lambda factor: fits(1 / factor**2))
    thinner = _fewer_channels(run.model, lambda factor: fits(1 / factor, 1 / factor**2))
    return [*found, *filter(None, (size, thinner))]


def _smaller_images(run: RunConfig, fits: Callable[[int], bool]) -> str | None:
    """The flag that divides the sides of images by the smallest of `_FACTORS` that fits."""
    size = getattr(run.data, "size", None)
    for factor in filter(fits, _FACTORS if size else ()):
        smaller = _divided(size, factor)
        with contextlib.suppress(ConfigError):
            image = dataclasses.replace(run.data, size=smaller).image  # type: ignore[call-arg]
            if image is not None:
                dataclasses.replace(run.model, image_shape=image.shape)
                return f"--config.data.size={','.join(map(str, np.ravel(smaller)))}"
    return None


def _fewer_channels(model: VAEConfig, fits: Callable[[int], bool]) -> str | None:
    """The flags that divide the channels by the smallest of `_FACTORS` that fits."""
    names = [name for name in _CHANNELS if name in names_of(type(model))]
    for factor in filter(fits, _FACTORS):
        fields = {name: _divided(getattr(model, name), factor) for name in names}
        with contextlib.suppress(ConfigError):
            dataclasses.replace(model, **fields)
            return " ".join(
                f"--config.model.{name}={','.join(map(str, np.ravel(value)))}"
                for name, value in fields.items()
            )
    return None


def _divided(number: Any, factor: int) -> Any:
    """A whole number divided, or every one of a tuple."""
    if isinstance(number, tuple):
        return tuple(_divided(part, factor) for part in number)
    return number // factor


def recomputes(model: VAEConfig) -> bool:
    """Whether the model's family can recompute in the backward pass instead of keeping."""
    return "remat" in names_of(type(model))
