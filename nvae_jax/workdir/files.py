"""Files of a run's folder, on a disk or in a bucket, written by the first process alone."""

from __future__ import annotations

import os

import jax
from etils import epath

from nvae_jax.errors import writing


def folder_path(path: str | os.PathLike[str]) -> epath.Path:
    """The path of a folder, absolute unless it is in a bucket."""
    folder = epath.Path(os.path.expanduser(path))
    return folder if is_remote(folder) else folder.absolute()


def write(path: epath.Path, content: bytes) -> None:
    """Replaces a file as a whole: no reader ever sees half of it.

    Raises:
      ConfigError: it cannot be written.
    """
    if jax.process_index() != 0:
        return
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_bytes(content)
        temporary.replace(path)


def append(path: epath.Path, content: bytes) -> None:
    """Appends to a file.

    Raises:
      ConfigError: it cannot be written.
    """
    if jax.process_index() != 0:
        return
    if is_remote(path):  # where there is no appending
        before = path.read_bytes() if path.exists() else b""
        write(path, before + content)
        return
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as file:
            file.write(content)


def check_writable(folder: epath.Path) -> None:
    """Checks that files can be written to a folder, which is made if it is not there.

    Raises:
      ConfigError: they cannot; the message names the folder.
    """
    if jax.process_index() == 0:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".probe_{os.getpid()}"
            probe.write_bytes(b"")
            probe.unlink()


def append_line(path: epath.Path, line: str) -> None:
    """Appends a line, clear of what a killed writer left of another.

    Raises:
      ConfigError: it cannot be written.
    """
    # Names of files need not be text.
    content = line.encode("utf-8", "backslashreplace") + b"\n"
    append(path, (b"" if _ends_a_line(path) else b"\n") + content)


def remove(path: epath.Path) -> None:
    """Removes a file, if it is there.

    Raises:
      ConfigError: it cannot be removed.
    """
    if jax.process_index() == 0:
        with writing(path):
            path.unlink(missing_ok=True)


def _ends_a_line(path: epath.Path) -> bool:
    if is_remote(path) or not path.exists():  # a file in a bucket is never half written
        return True
    with writing(path), open(path, "rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def is_remote(path: epath.Path) -> bool:
    """Whether a path is in a bucket."""
    return "://" in os.fspath(path)
