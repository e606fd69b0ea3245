"""Compiled functions, and what they compute, move and occupy."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from nvae_jax.measuring.flops import count_flops
from nvae_jax.measuring.hlo import Traffic, traffic
from nvae_jax.training.fitting import program_memory


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled function; all figures are of one call, per device.

    Attributes:
      call: the function.
      flops: in convolutions and matrix products, the mean over devices.
      traffic: bytes of main memory, and collectives.
      arguments: bytes of its arguments.
      temporaries: bytes of its temporaries.
      memory: bytes that it requires all together: arguments, temporaries, results that do not
        overwrite arguments, and the program itself.
      seconds: duration of tracing and compiling.
    """

    call: Callable[..., Any]
    flops: float
    traffic: Traffic
    arguments: int
    temporaries: int
    memory: int
    seconds: float

    @property
    def counts(self) -> dict[str, Any]:
        """The counts as fields of a `timing.Row`."""
        return {"flops": self.flops, "bytes": self.traffic.bytes, "memory": self.memory}


def compile_for(function: Any, *arguments: Any, devices: int = 1) -> Compiled:
    """Compiles a function.

    Args:
      function: as `jax.jit` returns it.
      *arguments: arrays, or their shapes with shardings.
      devices: the number of devices that share the work.
    """
    start = time.monotonic()
    traced = function.trace(*arguments)
    compiled = traced.lower().compile()
    seconds = time.monotonic() - start
    memory = compiled.memory_analysis()
    return Compiled(
        call=compiled,
        flops=count_flops(traced.jaxpr) / devices,
        traffic=traffic(compiled.as_text()),
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        memory=program_memory(compiled),
        seconds=seconds,
    )
