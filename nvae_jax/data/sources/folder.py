"""Anyone's images: a folder of files."""

import dataclasses
import functools
import hashlib
import heapq
import os
import stat
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from nvae_jax.data.images import (
    ImageReader,
    contain_and_pad,
    cover,
    cover_and_crop,
    stretch,
)
from nvae_jax.data.sources.base import DataConfig, Dataset, Decoded, positive_sides
from nvae_jax.data.sources.checked import Verdict, check_files
from nvae_jax.errors import ConfigError, reading, require
from nvae_jax.fields import require_literals
from nvae_jax.image_spec import ImageSpec

_FITS = {"crop": cover_and_crop, "random_crop": cover, "stretch": stretch, "pad": contain_and_pad}
_SHOWN = 5  # unreadable files that a message names
# Formats of cameras and drawing programs that Pillow does not read without a plugin.
_NO_IMAGES = {"BUFR", "GRIB", "HDF5", "MPEG"}  # kinds that Pillow recognises and cannot decode
_UNREAD = {".heic", ".heif", ".avif", ".jxl", ".dng", ".cr2", ".nef", ".arw", ".svg"}


@dataclasses.dataclass(frozen=True)
class ImageFolder(DataConfig):
    """The images in a folder and its subfolders, of any size, mode and file format of Pillow's.

    An image belongs to the test split by a hash of its path below the folder, and what a run knows
    stays on its side when other images come or go. Files of the same content are on the same side,
    and each side has an image if there are two that differ. Before first use every file is read
    once, which is remembered in the user's cache folder, so that a broken one is found at the start
    of a run.
    """

    name: ClassVar[str] = "image_folder"
    is_own: ClassVar[bool] = True

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

    def file_reader(self, image: ImageSpec) -> ImageReader:
        return self._reader(cover_and_crop if self.fit == "random_crop" else _FITS[self.fit])

    def open(self) -> Dataset:
        return self.open_again({})

    def open_again(self, known: Mapping[str, Any]) -> Dataset:
        root = Path(os.path.expanduser(self.path))
        verdicts, notes = self._checked(root)
        train, test = split_files(verdicts, self.test_fraction, known)
        allowed = f"a folder with 2 or more different images (of {len(verdicts)} it has 1)"
        require("data.path", self.path, bool(train and test), allowed)
        copies = len(verdicts) - len({verdict.digest for verdict in verdicts.values()})
        if copies:
            notes.append(f"{copies:,} of the images are copies of others, kept in the same split")
        readers = (self._reader(_FITS[self.fit]), self.file_reader(self.image))
        sources = [
            Decoded(Files(root, tuple(files)), reader)
            for files, reader in zip((train, test), readers, strict=True)
        ]
        return Dataset(
            name=self.name,
            image=self.image,
            train=sources[0],
            test=sources[1],
            flip=self.flip,
            random_crop=self.fit == "random_crop",
            notes=tuple(notes),
            files={
                split: {name: verdicts[name].size for name in files}
                for split, files in {"train": train, "test": test}.items()
            },
        )

    def _reader(self, geometry: Callable[..., Any]) -> ImageReader:
        height, width, channels = self.image.shape
        return ImageReader(channels, functools.partial(geometry, height=height, width=width))

    def _checked(self, root: Path) -> tuple[dict[str, Verdict], list[str]]:
        """The readable files, and what there is to say about the others."""
        require("data.path", self.path, root.is_dir(), "a folder")
        names = list_images(root)
        notes = []
        if others := list_images(root, _UNREAD - set(_suffixes())):
            kinds = ", ".join(sorted({Path(name).suffix.lower() for name in others}))
            notes.append(f"{len(others):,} files are left out, of kinds that are not read: {kinds}")
        if not names:
            raise ConfigError(
                f"data.path is {self.path!r}, {f'where {notes[0]}' if notes else 'without images'};"
                f" allowed: a folder with images ({', '.join(_some_suffixes())}, …)"
            )
        verdicts = check_files(root, names, self.channels)
        broken = {name: v.reason for name, v in verdicts.items() if v.reason is not None}
        if not broken:
            return verdicts, notes
        first = [f"{name} ({reason})" for name, reason in list(broken.items())[:_SHOWN]]
        more = f" and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
        message = f"{len(broken)} of {len(names)} files are unreadable: {', '.join(first)}{more}"
        if self.unreadable == "error":
            raise ConfigError(
                f"data.path is {os.fspath(root)!r}, where {message}; remove them, or leave them "
                "out by --config.data.unreadable=skip (and --accept_changes for a run that exists)"
            )
        readable = {name: verdict for name, verdict in verdicts.items() if name not in broken}
        return readable, [*notes, f"{message}; they are left out"]


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


def list_images(root: Path, suffixes: Collection[str] | None = None) -> list[str]:
    """The image files below a folder, as sorted paths relative to it with `/`.

    Which they are is told from their names: by `suffixes`, or else by those that Pillow reads.
    Links are followed, but each file and each folder counts once, by the first of its paths that
    has no link in it.
    """
    suffixes = _suffixes() if suffixes is None else suffixes
    found: dict[
        Any, tuple[bool, str]
    ] = {}  # by identity: whether the path has a link, and the path
    walked = set()
    real, linked = [os.fspath(root)], list[str]()
    while real or linked:
        by_link = not real  # real folders first, so that what they hold counts by its own path
        folder = heapq.heappop(real or linked)
        this = _identity(os.stat(folder))
        if this in walked:
            continue
        walked.add(this)
        with reading("data.path", folder, "a folder that this user may read"):
            entries = list(os.scandir(folder))
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                status = os.stat(entry.path)
            except OSError:  # a link that leads nowhere
                status = None
            is_link = by_link or entry.is_symlink()
            if status is not None and stat.S_ISDIR(status.st_mode):
                heapq.heappush(linked if is_link else real, entry.path)
            elif status is not None and not stat.S_ISREG(status.st_mode):
                continue  # a pipe, of which reading would wait for ever
            elif Path(entry.name).suffix.lower() in suffixes:
                path = (is_link, Path(entry.path).relative_to(root).as_posix())
                identity: Any = entry.path if status is None else _identity(status)
                found[identity] = min(path, found.get(identity, path))
    return sorted(name for _, name in found.values())


def _identity(status: os.stat_result) -> tuple[int, int]:
    """Equal for all paths of a file or a folder."""
    return status.st_dev, status.st_ino


def split_files(
    verdicts: Mapping[str, Verdict], fraction: float, known: Mapping[str, Any] | None = None
) -> tuple[list[str], list[str]]:
    """Names of the files to train and to test on.

    Files of the same content are on one side: that of those which a run knows already, whatever
    else comes to the folder, and test if it knows them on both; without those, that of the first
    of them by its name. If one side would have none, it is given the images whose hash is the
    nearest to it.

    Args:
      verdicts: the files by name.
      fraction: expected, for testing.
      known: the files of each split that a run had before.
    """
    first: dict[str, str] = {}
    for name, verdict in verdicts.items():
        first.setdefault(verdict.digest, name)
    hashes = {digest: name_hash(name) for digest, name in first.items()}
    test = {digest for digest, value in hashes.items() if value < fraction}
    for split, change in (("train", test.difference_update), ("test", test.update)):
        names = (known or {}).get(split, ())
        if isinstance(names, Mapping):  # not a mere number
            change({verdicts[name].digest for name in names if name in verdicts})
    if len(hashes) > 1 and not test:
        test = {min(hashes, key=hashes.__getitem__)}
    if len(hashes) > 1 and len(test) == len(hashes):
        test.remove(max(hashes, key=hashes.__getitem__))
    splits: tuple[list[str], list[str]] = [], []
    for name, verdict in verdicts.items():
        splits[verdict.digest in test].append(name)
    return splits


def name_hash(name: str) -> float:
    """A number in [0, 1) that depends on an image's path below the folder alone."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _suffixes() -> Collection[str]:
    from PIL import Image

    kinds = Image.registered_extensions()  # which initialises `OPEN`
    return {
        suffix for suffix, kind in kinds.items() if kind in Image.OPEN and kind not in _NO_IMAGES
    }


def _some_suffixes() -> list[str]:
    return [suffix for suffix in (".jpg", ".png", ".webp", ".tif") if suffix in _suffixes()]
