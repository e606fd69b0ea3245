"""The names of the images in a file: a path each, or `test:8-11`, which names four images.

They become the names of files that are written, so none may lead out of their folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from nvae_jax.errors import require

_RANGE = re.compile(r"(\w{1,100}):(\d{1,9})-(\d{1,9})")
_LONGEST, _LONGEST_PART = 4096, 255  # bytes, as file systems have them


def count_names(names: Iterable[str]) -> int:
    """How many images have names.

    Raises:
      ConfigError: a name cannot be one of a file in the folder that is written.
    """
    return sum(len(_numbers(found)) if (found := _range(name)) else 1 for name in names)


def expanded(names: Iterable[str]) -> list[str]:
    """One file name for each image, without a suffix: relative, and no two the same.

    `test:8-11` stands for `test_08` to `test_11`.

    Raises:
      ConfigError: a name cannot be one of a file in the folder that is written.
    """
    plain: list[str] = []
    for name in names:
        if found := _range(name):
            digits = len(found[3])
            plain += [f"{found[1]}_{number:0{digits}d}" for number in _numbers(found)]
        else:
            plain.append(os.fspath(_path(name).with_suffix("")))
    unique: list[str] = []
    taken: set[str] = set()
    repeated: dict[str, int] = {}
    for name in plain:
        candidate, number = name, repeated.get(name, 1)
        while candidate in taken:
            number += 1
            candidate = f"{name}_{number}"
        repeated[name] = number
        taken.add(candidate)
        unique.append(candidate)
    return unique


def _range(name: str) -> re.Match[str] | None:
    """The parts of a name of several images; None if it is a path, which is then checked."""
    found = _RANGE.fullmatch(name)
    if found is None:
        _require_inside(name, _path(name))
    else:
        require("the name of images", name, len(_numbers(found)) > 0, "rising numbers")
    return found


def _numbers(found: re.Match[str]) -> range:
    return range(int(found[2]), int(found[3]) + 1)


def _path(name: str) -> PurePosixPath:
    return PurePosixPath(name.replace(":", "_").replace("\\", "_"))


def _require_inside(name: str, path: PurePosixPath) -> None:
    inside = not path.is_absolute() and ".." not in path.parts and bool(path.parts)
    require("the name of an image", name, inside, "names inside the folder that is written")
    try:
        stored = os.fsencode(path)
    except UnicodeEncodeError:
        stored = b"\0"
    possible = b"\0" not in stored and len(stored) <= _LONGEST
    possible = possible and max(map(len, stored.split(b"/"))) <= _LONGEST_PART
    allowed = f"paths of up to {_LONGEST} bytes, {_LONGEST_PART} a part, that a file can have"
    require("the name of an image", name, possible, allowed)
