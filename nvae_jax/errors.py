"""The error contract: what is refused, and how.

A `ConfigError` means that what was asked for is impossible: a field, an option or a file is not
what it has to be. Its message is one line that names it, its value and what is allowed. It is
raised where the mistake is detected, and every command prints it and exits with code 2 (see
`nvae_jax.command_line`). Any other exception is a bug, and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any


class ConfigError(ValueError):
    """What was asked for is impossible; the message is one line for the user."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


def require(field: str, value: Any, condition: bool, allowed: str) -> None:
    """Unless `condition`, raises a ConfigError with `field`, its value and what is allowed."""
    if not condition:
        raise ConfigError(f"{field} is {value!r}; allowed: {allowed}")


@contextlib.contextmanager
def reading(
    field: str, path: str | os.PathLike[str], allowed: str, *broken: type[Exception]
) -> Iterator[None]:
    """Turns the errors of reading a file into a ConfigError.

    Args:
      field: the option or field that named the file.
      path: the file or folder that is read.
      allowed: what the file has to be, for the message.
      *broken: what the code inside raises, beside `OSError`, when the file is not what it has to
        be.
    """
    # RecursionError: JSON that is nested too deeply.
    kinds: tuple[type[Exception], ...] = (OSError, RecursionError, *broken)
    try:
        yield
    except ConfigError:
        raise
    except kinds as error:
        raise ConfigError(
            f"{field} is {os.fspath(path)!r}, which cannot be read ({reason(error)}); "
            f"allowed: {allowed}"
        ) from error


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns the errors of writing a file into a ConfigError."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{os.fspath(path)} cannot be written: {reason(error)}; allowed: a place with space "
            "that this user may write to"
        ) from error


@contextlib.contextmanager
def importing(package: str, what: str) -> Iterator[None]:
    """Around the import of a package that the project can do without.

    Args:
      package: its name for pip.
      what: what cannot be done without it.

    Raises:
      ConfigError: it cannot be imported; the message says what requires it.
    """
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f"{what} requires {package}, which cannot be imported ({reason(error)}): "
            f"pip install {package}"
        ) from error


@contextlib.contextmanager
def refusing_exhausted(what: str, allowed: str) -> Iterator[None]:
    """Turns the errors of the host or a device whose memory is too small into a ConfigError.

    Args:
      what: requires the memory.
      allowed: what would require less.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        cause = reason(error).splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")
        raise ConfigError(
            f"{what} does not fit the memory ({cause}); allowed: {allowed}"
        ) from error


def reason(error: BaseException) -> str:
    """What an error says, without the file name that the message around it has."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # NumPy advises `allow_pickle`, which no option of ours follows.
    if any(text in str(error) for text in ("allow_pickle", "Python objects in dtype")):
        return "it holds no plain arrays"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    # Pillow names what it was given, not the file.
    return re.sub(r" <_io\.[^>]*>", "", str(error)) or type(error).__name__
