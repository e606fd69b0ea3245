"""The measured limits of a device, and the part of them that a program reaches.

The roofline (Williams et al., 2009): a program of F operations and D bytes takes at least
F / matrix rate and at least D / bandwidth. The longer of the two binds.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from nvae_jax.measuring.timing import Row, measure

SMALLEST_MATRIX, LARGEST_MATRIX = 512, 16384
LONG_ENOUGH = 0.05  # seconds of a matrix product; no larger one is tried after it
TRIAD_BYTES = 2**28  # of each array: more than caches hold


@dataclasses.dataclass(frozen=True)
class Machine:
    """The measured limits of one device.

    Attributes:
      matrix_rate: operations per second of the fastest square matrix product, in the model's dtype
        at JAX's default precision; a multiplication and an addition count as two.
      bandwidth: bytes per second of main memory, reading two arrays and writing one.
      call: seconds of a call that adds two numbers.
    """

    matrix_rate: float
    bandwidth: float
    call: float


@dataclasses.dataclass(frozen=True)
class Share:
    """The parts of a device's limits that a program reaches; None: that was not counted.

    Attributes:
      matrix: part of the matrix rate.
      bandwidth: part of the memory's bandwidth; more than 1 where caches serve accesses that are
        counted as main memory's.
      bound: the limit that is nearer, matrix or memory.
    """

    matrix: float | None
    bandwidth: float | None
    bound: str | None


def measure_machine(dtype: str, repeats: int = 5) -> Machine:
    """Measures JAX's first device."""
    rate, size = 0.0, SMALLEST_MATRIX
    while size <= LARGEST_MATRIX:
        matrix = jnp.ones((size, size), dtype)
        seconds = _seconds(jax.jit(jnp.matmul), (matrix, matrix), repeats)
        rate = max(rate, 2 * size**3 / seconds)
        if seconds > LONG_ENOUGH:
            break
        size *= 2
    call = _seconds(jax.jit(jnp.add), (jnp.ones(()), jnp.ones(())), repeats)
    return Machine(rate, measure_bandwidth(TRIAD_BYTES, repeats), call)


def measure_bandwidth(size: int, repeats: int) -> float:
    """Bytes per second of x ← x / 2 + y in place, for arrays of `size` bytes."""
    triad = jax.jit(lambda x, y: 0.5 * x + y, donate_argnums=0)
    x, y = jnp.ones((2, size // 4))

    def run() -> Any:
        nonlocal x
        x = triad(x, y)
        return x

    return 3 * size / min(measure({"triad": run}, repeats)["triad"])


def _seconds(function: Any, arguments: tuple[Any, ...], repeats: int) -> float:
    return min(measure({"": lambda: function(*arguments)}, repeats)[""])


def share(machine: Machine, row: Row) -> Share:
    """The parts of the machine's limits that a measurement reaches."""
    matrix = None if row.flops is None else row.flops / machine.matrix_rate / row.median
    bandwidth = None if row.bytes is None else row.bytes / machine.bandwidth / row.median
    bound = None
    if matrix is not None and bandwidth is not None:
        bound = "matrix" if matrix >= bandwidth else "memory"
    return Share(matrix, bandwidth, bound)
