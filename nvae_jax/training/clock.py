"""How fast a run is, without what it does between its updates."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Measures the time of updates, from now on."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Leaves out of all figures what came before."""
        self._window_start = self._start = time.monotonic()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Leaves out of all figures what is done inside."""
        start = time.monotonic()
        yield
        elapsed = time.monotonic() - start
        self._window_start += elapsed
        self._start += elapsed

    def total(self) -> float:
        """Seconds since the last restart."""
        return time.monotonic() - self._start

    def window(self) -> float:
        """Seconds since this was last called, or since the last restart."""
        start, self._window_start = self._window_start, time.monotonic()
        return self._window_start - start


def duration(seconds: float) -> str:
    """A time as people read it, such as 1h05m or 4m20s."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"
