"""Anyone's images: a folder of files."""

import dataclasses
import functools
import hashlib
import logging
import os
from collections.abc import Collection
from pathlib import Path
from typing import ClassVar, Literal

from nvae_jax.data.images import (
    ImageReader,
    contain_and_pad,
    cover,
    cover_and_crop,
    stretch,
)
from nvae_jax.data.sources.base import DataConfig, Dataset, Decoded, positive_sides
from nvae_jax.data.sources.checked import find_unreadable
from nvae_jax.errors import ConfigError, require
from nvae_jax.fields import require_literals
from nvae_jax.image_spec import ImageSpec

_FITS = {"crop": cover_and_crop, "random_crop": cover, "stretch": stretch, "pad": contain_and_pad}
_SHOWN = 5  # unreadable files that a message names


@dataclasses.dataclass(frozen=True)
class ImageFolder(DataConfig):
    """The images in a folder and its subfolders, of any size, mode and file format of Pillow's.

    An image belongs to the test split by a hash of its path below the folder: it never changes
    sides when other images come or go. Before first use every file is read once, which is
    remembered in the user's cache folder, so that a broken one is found at the start of a run.
    """

    name: ClassVar[str] = "image_folder"

    path: str  # the folder; names that begin with a dot are ignored
    size: int | tuple[int, int]  # pixels of a side, or (height, width)
    channels: Literal[1, 3, 4] = 3  # grey, RGB or RGBA; without A, transparent pixels lie on white
    # How an image comes to `size`. crop: scaled to cover it, the middle is kept; random_crop: in
    # training a random part of that, drawn anew in each epoch; stretch: scaled without regard to
    # proportions; pad: scaled to fit in, between black borders.
    fit: Literal["crop", "random_crop", "stretch", "pad"] = "crop"
    flip: bool = False  # whether training images are mirrored left to right at random
    test_fraction: float = 0.1  # expected fraction of the images that is for testing
    # What happens when files cannot be read. error: the folder is refused; skip: they are left out.
    unreadable: Literal["error", "skip"] = "error"

    def __post_init__(self):
        positive_sides(self.size)
        require_literals(self, "data.")
        inside = 0 < self.test_fraction < 1
        require("data.test_fraction", self.test_fraction, inside, "between 0 and 1")

    @property
    def image(self) -> ImageSpec:
        return ImageSpec(*positive_sides(self.size), self.channels)

    def open(self) -> Dataset:
        root = Path(self.path).expanduser()
        train, test = self._splits(root)
        height, width, channels = self.image.shape
        fits = (_FITS[self.fit], cover_and_crop if self.fit == "random_crop" else _FITS[self.fit])
        sources = [
            Decoded(
                Files(root, tuple(files)),
                ImageReader(channels, functools.partial(geometry, height=height, width=width)),
            )
            for files, geometry in zip((train, test), fits, strict=True)
        ]
        return Dataset(
            name=self.name,
            image=self.image,
            train=sources[0],
            test=sources[1],
            flip=self.flip,
            random_crop=self.fit == "random_crop",
        )

    def _splits(self, root: Path) -> tuple[list[str], list[str]]:
        """Names of the files to train and to test on."""
        require("data.path", self.path, root.is_dir(), "a folder")
        names = list_images(root)
        allowed = f"a folder with images ({', '.join(_some_suffixes())}, …)"
        require("data.path", self.path, bool(names), allowed)
        broken = find_unreadable(root, names)
        if broken:
            self._report(root, len(names), broken)
        readable = [name for name in names if name not in broken]
        splits: tuple[list[str], list[str]] = [], []
        for name in readable:
            splits[is_test(name, self.test_fraction)].append(name)
        allowed = "more images, or another fraction"
        for split, purpose in zip(splits, ("train", "test"), strict=True):
            if not split:
                raise ConfigError(
                    f"data.test_fraction is {self.test_fraction}, which leaves none of the "
                    f"{len(readable)} images in {root} to {purpose}; allowed: {allowed}"
                )
        return splits

    def _report(self, root: Path, number: int, broken: dict[str, str]) -> None:
        """Refuses unreadable files, or says which ones are left out."""
        first = [f"{name} ({error})" for name, error in list(broken.items())[:_SHOWN]]
        more = f" and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
        message = f"{len(broken)} of {number} files are unreadable: {', '.join(first)}{more}"
        if self.unreadable == "error":
            raise ConfigError(
                f"data.path is {os.fspath(root)!r}, where {message}; remove them, or leave them "
                "out by --config.data.unreadable=skip"
            )
        logging.getLogger(__name__).warning("%s: %s; they are left out", root, message)


@dataclasses.dataclass(frozen=True, eq=False)
class Files:
    """Files of a folder by their names in it."""

    root: Path
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int, /) -> str:
        return os.path.join(self.root, self.names[index])

    def describe(self, index: int, /) -> str:
        """Where the record is stored, for messages."""
        return self[index]


def list_images(root: Path) -> list[str]:
    """The image files below a folder, as sorted paths relative to it with `/`.

    Which they are is told from their names, whether they can be read or not.
    """
    suffixes = _suffixes()
    found = []
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in suffixes:
                found.append((Path(folder) / name).relative_to(root).as_posix())
    return sorted(found)


def is_test(name: str, fraction: float) -> bool:
    """Whether an image belongs to the test split, from its path below the folder alone."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def _suffixes() -> Collection[str]:
    from PIL import Image

    return Image.registered_extensions()


def _some_suffixes() -> list[str]:
    return [suffix for suffix in (".jpg", ".png", ".webp", ".tif") if suffix in _suffixes()]
