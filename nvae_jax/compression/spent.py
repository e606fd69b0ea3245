"""The time that compression takes, and what takes it."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator


@dataclasses.dataclass
class Seconds:
    """Seconds that something has taken.

    Attributes:
      wall: by the clock.
      processor: of all threads of this process, on all cores.
    """

    wall: float = 0.0
    processor: float = 0.0

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Adds the time until the end of the block."""
        wall, processor = time.monotonic(), time.process_time()
        try:
            yield
        finally:
            self.wall += time.monotonic() - wall
            self.processor += time.process_time() - processor


@dataclasses.dataclass
class Spent:
    """The time of compressing or decompressing images, without compiling.

    Attributes:
      total: of everything.
      network: of the model's compiled programs.
      coder: of pushing to the stack and popping from it, probabilities included. What is left is
        the codec of the opening, the checks, and copying.
    """

    total: Seconds = dataclasses.field(default_factory=Seconds)
    network: Seconds = dataclasses.field(default_factory=Seconds)
    coder: Seconds = dataclasses.field(default_factory=Seconds)
