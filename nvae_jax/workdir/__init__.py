"""A run's folder: its configuration, checkpoints, pictures, log and metrics.

======================== ======================================
`config.json`            the configuration of the run
`checkpoints/<step>/`    the state's arrays and a JSON object
`pictures/<name>.png`    grids of images
`log.txt`                what the run said, line by line
`metrics.jsonl`          what it measured, one JSON object per line
`changes.jsonl`          the settings that were changed, and after which step
`images.json.gz`         the images that it is trained and tested on
`lock.json`              the process that is training in it
`done.json`              the last validation; it exists once training has come to its end
`<mode>/`                what a mode has made
======================== ======================================

Every process of a multi-host run opens the same folder, on a shared file system, and makes the same
calls; the first process alone writes configuration, pictures, log and metrics.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath
from numpy.typing import ArrayLike

from nvae_jax.errors import ConfigError, require
from nvae_jax.workdir import configuration, files
from nvae_jax.workdir.checkpoints import Checkpoints
from nvae_jax.workdir.lock import locked
from nvae_jax.workdir.manifest import Manifest, load_manifest, manifest_changes, save_manifest
from nvae_jax.workdir.pictures import png
from nvae_jax.workdir.records import Records
from nvae_jax.workdir.retention import Keep
from nvae_jax.workdir.rows import Rows

__all__ = ["Workdir"]


class Workdir:
    """One run's folder, created when it is first written to.

    Args:
      path: the folder, also in a bucket (gs://bucket/run).
      keep: which checkpoints to keep.
      results: where everything but the configuration and checkpoints is written; None: in `path`.

    Attributes:
      path: the folder.
      results: the folder of what is written.
      checkpoints: the states that are saved in it.
      records: its log and metrics.

    Raises:
      ConfigError: there is a file of that name.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        keep: Keep = Keep(),  # noqa: B008 - it is frozen
        results: str | os.PathLike[str] | None = None,
    ):
        self.path: epath.Path = files.folder_path(path)
        is_folder = self.path.is_dir() or not self.path.exists()
        require("--workdir", os.fspath(path), is_folder, "a folder, or a new name")
        # Orbax takes them for a pattern of names, and drops the arrays that it saves there.
        plain = not set("[]") & set(os.fspath(self.path))
        require("--workdir", os.fspath(self.path), plain, "a path without [ and ]")
        self.checkpoints = Checkpoints(self.path / "checkpoints", keep)
        self.results = self.path if results is None else files.folder_path(results)
        is_folder = self.results.is_dir() or not self.results.exists()
        require("--results", os.fspath(results or path), is_folder, "a folder, or a new name")
        self.records = Records(self.results)
        self._images = self.path / "images.json.gz"

    def save_config(self, settings: Mapping[str, Mapping[str, Any]]) -> None:
        """Writes the run's configuration, fields by section."""
        configuration.save_config(self.path / "config.json", settings)

    def load_config(self) -> dict[str, Any]:
        """The saved configuration, fields by section; tuples come back as lists.

        Raises:
          ConfigError: none is saved, or it is broken.
        """
        return configuration.load_config(self.path / "config.json")

    def has_config(self) -> bool:
        """Whether a configuration is saved, so that this is the folder of a run."""
        return (self.path / "config.json").exists()

    def load_images(self) -> Manifest | None:
        """The images of the run; None where none were written down.

        Raises:
          ConfigError: the list of images is broken.
        """
        return load_manifest(self._images)

    def image_changes(self, manifest: Manifest) -> list[str]:
        """What is different about the images; nothing where none were written down.

        Raises:
          ConfigError: the list of images is broken.
        """
        saved = self.load_images()
        return [] if saved is None else manifest_changes(saved, manifest)

    def save_images(self, manifest: Manifest) -> None:
        """Writes down the images of the run."""
        save_manifest(self._images, manifest)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from training in this folder.

        Raises:
          ConfigError: another process is training in it.
        """
        with locked(self.path) as message:
            if message:
                self.log(message)
            yield

    def check_writable(self) -> None:
        """Checks, before long work, that results can be written.

        Raises:
          ConfigError: they cannot.
        """
        try:
            files.check_writable(self.results)
        except ConfigError as error:
            raise ConfigError(f"{error}; or --results=FOLDER for what is written") from error

    def log(self, message: str) -> None:
        """Prints `message`, and appends it to the log."""
        self.records.log(message)

    def save_picture(self, name: str, images: ArrayLike, columns: int | None = None) -> None:
        """Saves `pictures/<name>.png`, a grid of images of which small ones are enlarged."""
        self.write(f"pictures/{name}.png", png(images, columns, enlarge=True))

    def write(self, name: str, content: bytes) -> epath.Path:
        """Writes the file `name` of the results as a whole, and returns its path."""
        path = self.results / name
        files.write(path, content)
        return path

    def rows(self, name: str, width: int, description: Mapping[str, Any]) -> Rows:
        """The rows of numbers `name` of the results, to be completed."""
        return Rows(self.results, name, width, description)
