"""The images that a run is trained and tested on: `images.json.gz`.

A manifest has, by split, the size of each image file by its name, or the number of images.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from nvae_jax.errors import reading
from nvae_jax.workdir.files import write

Manifest = Mapping[str, Mapping[str, int] | int]
SHOWN = 5  # names in a message


def save_manifest(path: epath.Path, manifest: Manifest) -> None:
    """Writes a manifest."""
    # Without the time, so that equal manifests are equal files.
    write(path, gzip.compress(json.dumps(manifest).encode(), mtime=0))


def load_manifest(path: epath.Path) -> Manifest | None:
    """The manifest in a file; None if there is no file.

    Raises:
      ConfigError: the file is broken.
    """
    if not path.exists():
        return None
    with reading("the list of images", path, "as training wrote it", ValueError, EOFError):
        manifest = json.loads(gzip.decompress(path.read_bytes()))
        if not isinstance(manifest, dict):
            raise ValueError("it is not an object")
    return manifest


def manifest_changes(saved: Manifest, given: Manifest) -> list[str]:
    """Lines that say which images were added, removed, moved to the other split or changed."""
    if not all(isinstance(files, dict) for files in (*saved.values(), *given.values())):
        return [
            f"{split} has {_number(given.get(split, 0))}, saved: {_number(saved[split])}"
            for split in saved
            if _size(saved[split]) != _size(given.get(split, 0))
        ]
    before, after = _by_name(saved), _by_name(given)
    kinds: dict[str, list[str]] = {
        "removed": [name for name in before if name not in after],
        "added": [name for name in after if name not in before],
        "moved to the other split": [],
        "changed": [],
    }
    for name in before.keys() & after.keys():
        (split, size), (new_split, new_size) = before[name], after[name]
        if split != new_split:
            kinds["moved to the other split"].append(name)
        elif size != new_size:
            kinds["changed"].append(name)
    return [f"{_number(names)} {kind}: {_some(names)}" for kind, names in kinds.items() if names]


def _by_name(manifest: Manifest) -> dict[str, tuple[str, Any]]:
    return {
        name: (split, size)
        for split, files in manifest.items()
        for name, size in dict(files).items()  # type: ignore[arg-type]
    }


def _size(files: Any) -> int:
    return files if isinstance(files, int) else len(files)


def _number(files: Any) -> str:
    return f"{_size(files):,} image{'' if _size(files) == 1 else 's'}"


def _some(names: list[str]) -> str:
    shown = sorted(names)[:SHOWN]
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(shown) + more
