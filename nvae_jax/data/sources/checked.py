"""The files of a folder, each read once: which are no readable images, and which are the same."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from nvae_jax.data.images import ImageReader
from nvae_jax.errors import reason
from nvae_jax.user_cache import cache_folder

_SAVE_SECONDS = 30


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What reading a file has shown.

    Attributes:
      size: in bytes.
      reason: why it cannot be read as an image; None: it can.
      digest: equal for files of the same content.
    """

    size: int
    reason: str | None
    digest: str


def check_files(root: Path, names: Sequence[str], channels: int) -> dict[str, Verdict]:
    """Reads all files as images of so many channels.

    That a file is readable is kept in the user's cache folder with its size and time of change, so
    that a later call, or one after an interruption, reads only what is new. Failures are not kept,
    since permissions, Pillow's limits and its plugins may change while a file does not.

    Args:
      root: a folder.
      names: of files in it.
      channels: as for `ImageReader`.

    Returns: a verdict for every name.
    """
    memory = _memory_of(root, channels)
    known = _load(memory)
    stamps = {name: _stamp(root / name) for name in names}
    digests = {name: known[name][1] for name in names if known.get(name, [None])[0] == stamps[name]}
    verdicts = {name: Verdict(stamps[name][0], None, digest) for name, digest in digests.items()}
    new = [name for name in names if name not in digests]
    if new:
        from tqdm import tqdm

        read = functools.partial(_read, ImageReader(channels))
        saved = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor() as pool:
            found = pool.map(lambda name: read(root / name), new)
            for name, verdict in tqdm(
                zip(new, found, strict=True), "reading images once", len(new)
            ):
                verdicts[name] = verdict
                if verdict.reason is None:
                    digests[name] = verdict.digest
                if time.monotonic() - saved > _SAVE_SECONDS:
                    _save(memory, stamps, digests)
                    saved = time.monotonic()
        _save(memory, stamps, digests)
    return {name: verdicts[name] for name in names}


def _read(reader: ImageReader, path: Path) -> Verdict:
    content = b""
    try:
        content = path.read_bytes()
        reader(content)
        cause = None
    # Pillow raises all kinds of exceptions for broken files.
    except Exception as error:
        cause = f"{type(error).__name__}: {reason(error)}"
    return Verdict(len(content), cause, hashlib.sha256(content).hexdigest()[:32])


def _stamp(path: Path) -> list[int]:
    try:
        status = path.stat()
    except OSError:  # a dangling link
        return []
    return [status.st_size, status.st_mtime_ns]


def _memory_of(root: Path, channels: int) -> Path | None:
    folder = cache_folder("folders")
    name = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    return folder and folder / f"{name}-{channels}.json"


def _load(memory: Path | None) -> dict[str, list]:
    try:
        return json.loads(memory.read_text()) if memory else {}
    except (OSError, ValueError, RecursionError):
        return {}


def _save(memory: Path | None, stamps: Mapping[str, list[int]], digests: Mapping[str, str]) -> None:
    if memory is None:
        return
    content = {name: [stamps[name], digest] for name, digest in digests.items()}
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=memory.parent, delete=False) as file:
            json.dump(content, file)
        os.replace(file.name, memory)
    except OSError:
        pass  # it is only a memory: the next run reads the files again
