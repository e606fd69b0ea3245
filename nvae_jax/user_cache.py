"""The user's cache folder: compiled programs, checked images, downloaded weights."""

import os
import tempfile
from pathlib import Path


def cache_folder(name: str) -> Path | None:
    """A folder below the user's cache for `name`; None where there is no home folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache, "nvae_jax", name) if os.path.isabs(cache) else None


def keep_libraries_out_of_here() -> None:
    """Where there is no home folder, has libraries use the temporary one in place of `./~`."""
    if not os.path.isabs(os.path.expanduser("~")):
        os.environ.setdefault("KERAS_HOME", os.path.join(tempfile.gettempdir(), "keras"))
