"""The platform that a program is compiled for, where the traced program depends on it."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_PLATFORM: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


@contextlib.contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """Inside, programs are traced for `platform`, such as "cpu"."""
    token = _PLATFORM.set(platform)
    try:
        yield
    finally:
        _PLATFORM.reset(token)


def compiled_platform() -> str:
    """The platform of `compiling_for`; outside of it, JAX's default backend."""
    return _PLATFORM.get() or jax.default_backend()
