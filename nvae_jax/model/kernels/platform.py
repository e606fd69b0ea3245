"""The platform that a program is traced for, where `jax.lax.platform_dependent` does not suffice.

That is where the structure of the traced program depends on the platform, such as whether it has a
loop. Operations with one formulation per platform use `jax.lax.platform_dependent` instead.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_PLATFORM: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


@contextlib.contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """Context manager in which programs are traced for `platform`, such as "cpu".

    JAX's cache of traced functions does not know of it: functions that are traced for different
    platforms must be different objects.
    """
    token = _PLATFORM.set(platform)
    try:
        yield
    finally:
        _PLATFORM.reset(token)


def compiled_platform() -> str:
    """Returns the platform of the innermost `compiling_for`, or else JAX's default backend."""
    return _PLATFORM.get() or jax.default_backend()
