"""Which files of a folder are no readable images, found once and remembered."""

import concurrent.futures
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from nvae_jax.data.images import ImageReader

_SAVE_SECONDS = 30


def find_unreadable(root: Path, names: Sequence[str]) -> dict[str, str]:
    """The files that cannot be read as images, by name, with the reason.

    What was found is kept in the user's cache folder with each file's size and time of change, so
    that a later call, or one after an interruption, reads only what is new.

    Args:
      root: a folder.
      names: of files in it.
    """
    memory = _memory_of(root)
    known = _load(memory)
    stamps = {name: _stamp(root / name) for name in names}
    verdicts = {
        name: known[name] for name in names if known.get(name, [None])[0] == stamps[name]
    }  # name: [stamp, reason or None]
    new = [name for name in names if name not in verdicts]
    if new:
        from tqdm import tqdm

        saved = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor() as pool:
            reasons = pool.map(lambda name: _why_unreadable(root / name), new)
            progress = tqdm(zip(new, reasons, strict=True), "reading images once", len(new))
            for name, reason in progress:
                verdicts[name] = [stamps[name], reason]
                if time.monotonic() - saved > _SAVE_SECONDS:
                    _save(memory, verdicts)
                    saved = time.monotonic()
        _save(memory, verdicts)
    return {name: verdict[1] for name, verdict in verdicts.items() if verdict[1] is not None}


def _why_unreadable(path: Path) -> str | None:
    try:
        ImageReader()(path)
    # Pillow raises all kinds of exceptions for broken files.
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _stamp(path: Path) -> list[int]:
    try:
        status = path.stat()
    except OSError:  # a dangling link
        return []
    return [status.st_size, status.st_mtime_ns]


def _memory_of(root: Path) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    name = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    return Path(cache) / "nvae_jax" / "folders" / f"{name}.json"


def _load(memory: Path) -> dict[str, list]:
    try:
        return json.loads(memory.read_text())
    except (OSError, ValueError):
        return {}


def _save(memory: Path, verdicts: dict[str, list]) -> None:
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=memory.parent, delete=False) as file:
            json.dump(verdicts, file)
        os.replace(file.name, memory)
    except OSError:
        pass  # it is only a memory: the next run reads the files again
