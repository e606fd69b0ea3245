"""The time of functions, measured in turns, because the other load of a machine varies."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

WARM_UP = 2  # calls that are not counted
AT_LEAST = 0.02  # seconds that a measurement should last


@dataclasses.dataclass(frozen=True)
class Row:
    """A measurement; its counts are of one call, per device.

    Attributes:
      what: the part of the benchmark, such as `train`.
      name: unique in that part.
      seconds: duration of one call, for each repeat.
      images: per call, over all devices; None: the function does not work on images.
      draws: of latents per image; None: one.
      flops: in convolutions and matrix products.
      bytes: read from and written to main memory.
      memory: bytes that it requires at its peak, as the compiler plans them.
      peak: the most bytes of a device in use since the process began, where the platform tells.
    """

    what: str
    name: str
    seconds: Sequence[float]
    images: int | None = None
    draws: int | None = None
    flops: float | None = None
    bytes: float | None = None
    memory: int | None = None
    peak: int | None = None

    @property
    def median(self) -> float:
        """The median of the seconds."""
        return statistics.median(self.seconds)

    @property
    def rate(self) -> float | None:
        """Images per second, or draws per second of all images; None without images."""
        return self.images * (self.draws or 1) / self.median if self.images else None


def measure(
    functions: Mapping[str, Callable[[], Any]],
    repeats: int,
    at_least: float = AT_LEAST,
) -> dict[str, list[float]]:
    """Seconds per call of every function, `repeats` times.

    The functions take turns. Each measurement is of consecutive calls that last about `at_least`
    seconds. On accelerators the calls queue, so that starting one overlaps with the one before; on
    CPU each is waited for, since calls would otherwise share the cores. One call before each
    measurement is not counted, because the function before it has filled the caches.

    Args:
      functions: without arguments; their results are waited for.
      repeats: measurements of each.
      at_least: seconds that a measurement should last.
    """
    calls = {}
    for name, function in functions.items():
        for _ in range(WARM_UP):
            jax.block_until_ready(function())
        calls[name] = 1 + int(at_least / _seconds(function, 1))
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            jax.block_until_ready(function())
            seconds[name].append(_seconds(function, calls[name]))
    return seconds


def _seconds(function: Callable[[], Any], calls: int) -> float:
    queue = jax.default_backend() != "cpu"
    start = time.perf_counter()
    for _ in range(calls):
        outputs = function()
        if not queue:
            jax.block_until_ready(outputs)
    jax.block_until_ready(outputs)
    return (time.perf_counter() - start) / calls


def images_per_second(batches: Any, batch_size: int, seconds: float) -> float:
    """Images per second of an iterator over batches, measured for about `seconds`."""
    for _ in range(16):
        next(batches)  # more than loaders keep ready
    start, number = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        next(batches)
        number += batch_size
    return number / elapsed
