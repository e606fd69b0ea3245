"""How long functions take: in turns, because other work on a machine comes and goes."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

WARM_UP = 2  # calls before the first that counts
AT_LEAST = 0.02  # seconds that one measurement should last


@dataclasses.dataclass(frozen=True)
class Row:
    """One thing that was measured; counts are of one run of it, on each device.

    Attributes:
      what: the part of the benchmark, such as `train`.
      name: of the thing, unique in that part.
      seconds: that one run took, one a repeat.
      images: in a run, over all devices; None: images are not what it works on.
      draws: of latents for every image; None: one.
      flops: of convolutions and matrix products.
      bytes: read and written in main memory.
      memory: that it needs at its peak, as the compiler plans it.
      peak: most memory of a device in use since the process began, where the platform tells.
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
        """Of the seconds."""
        return statistics.median(self.seconds)

    @property
    def rate(self) -> float | None:
        """Images a second, or draws of all images a second; None where there are no images."""
        return self.images * (self.draws or 1) / self.median if self.images else None


def measure(
    functions: Mapping[str, Callable[[], Any]],
    repeats: int,
    at_least: float = AT_LEAST,
) -> dict[str, list[float]]:
    """Seconds of a call, for every function, `repeats` times.

    The functions take turns. A measurement is of as many calls in a row as last `at_least` seconds.
    On accelerators they queue, so that the time to start one hides behind the one before; on CPU
    each is waited for, since otherwise calls would share the cores. A call that does not count goes
    before, because the function whose turn it was has filled the caches.

    Args:
      functions: of no arguments; what they return is waited for.
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
    """How fast an iterator over batches is read, measured over about so many seconds."""
    for _ in range(16):
        next(batches)  # more than what loaders keep ready
    start, number = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        next(batches)
        number += batch_size
    return number / elapsed
