"""What the measuring commands write and read again: tables, pictures and JSON files."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from nvae_jax.errors import reading, writing

T = TypeVar("T")

# The rows of a table: in each, the cells by the titles of their columns.
Rows = Sequence[Mapping[str, str]]

PART = ".part"  # the ending of a file that is still being written


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table for the terminal: the first column flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in cells
    ]


def markdown(rows: Rows) -> list[str]:
    """Lines of a table in Markdown."""
    cells = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return [f"| {' | '.join(line)} |" for line in cells]


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a file, which appears whole or not at all.

    Raises:
      ConfigError: it cannot be written.
    """
    part = os.fspath(path) + PART
    with writing(path):
        with open(part, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(part, path)


def write_json(path: str, value: Any) -> None:
    """Writes a value as JSON, see `write_text`."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(option: str, path: str, build: Callable[[Any], T]) -> T:
    """Builds something from the value in a file that one of these commands has written.

    Args:
      option: the option that names the file, for messages.
      path: the file.
      build: makes it from the value; for an unsuitable one it raises AttributeError, KeyError,
        TypeError or ValueError.

    Raises:
      ConfigError: the file cannot be read, or holds something else.
    """
    broken = (AttributeError, KeyError, TypeError, ValueError)
    allowed = "a file that --json of this command has written"
    with reading(option, path, allowed, *broken), open(path, encoding="utf-8") as file:
        return build(json.load(file))


@contextlib.contextmanager
def drawing(path: str, width: float, height: float) -> Iterator[Any]:
    """An empty figure of `width` by `height` inches, which is then written to a picture file.

    Raises:
      ConfigError: it cannot be written.
    """
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
    yield figure
    with writing(path):
        figure.savefig(path, dpi=110)
