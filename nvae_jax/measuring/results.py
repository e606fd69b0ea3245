"""What the measuring commands write and read again: tables, pictures and JSON files."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from nvae_jax.errors import reading, require, writing

T = TypeVar("T")

_PART = ".part"  # what the name of a file ends with that is being written


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table for the terminal: the first column flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in cells
    ]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table in Markdown."""
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def check_file(option: str, path: str | None) -> None:
    """Checks, before long work, that its results can be written to a file.

    Args:
      option: the option that names the file.
      path: the file; None: the option is not given.

    Raises:
      ConfigError: the file's folder does not exist or cannot be written to, or the file is a
        folder.
    """
    if path is not None:
        folder = os.path.dirname(os.path.abspath(path))
        require(option, path, os.path.isdir(folder), "a file in a folder that exists")
        require(option, path, not os.path.isdir(path), "a file, and no folder")
        with writing(path):
            open(path + _PART, "w").close()
            os.remove(path + _PART)


def check_picture(option: str, path: str | None) -> None:
    """As `check_file`, for a picture.

    Raises:
      ConfigError: the file cannot be written, or matplotlib cannot draw such a file.
    """
    check_file(option, path)
    if path is not None:
        installed = importlib.util.find_spec("matplotlib") is not None
        require(option, path, installed, "with matplotlib (pip install matplotlib)")
        formats = new_figure(1, 1).canvas.get_supported_filetypes()
        fits = os.path.splitext(path)[1].removeprefix(".").lower() in formats
        require(option, path, fits, f"a file name that ends with {', '.join(formats)}")


def write_text(path: str, text: str) -> None:
    """Writes a file, which appears whole or not at all.

    Raises:
      ConfigError: it cannot be written.
    """
    with writing(path):
        with open(path + _PART, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(path + _PART, path)


def write_json(path: str, value: Any) -> None:
    """Writes a value as JSON, see `write_text`."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(option: str, path: str, build: Callable[[Any], T]) -> T:
    """What `build` makes of the value in a file that one of these commands wrote.

    Args:
      option: the option that names the file, for messages.
      path: the file.
      build: of another value it raises AttributeError, KeyError, TypeError or ValueError.

    Raises:
      ConfigError: the file cannot be read, or holds something else.
    """
    broken = (AttributeError, KeyError, TypeError, ValueError)
    allowed = "a file that --json of this command has written"
    with reading(option, path, allowed, *broken), open(path, encoding="utf-8") as file:
        return build(json.load(file))


def new_figure(width: float, height: float) -> Any:
    """An empty figure of `width` by `height` inches."""
    import matplotlib.figure

    return matplotlib.figure.Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: str) -> None:
    """Writes a figure to a picture file.

    Raises:
      ConfigError: it cannot be written.
    """
    with writing(path):
        figure.savefig(path, dpi=110)
