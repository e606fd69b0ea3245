"""Anyone's images: a folder of files."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from absl import logging
from PIL import Image

from nvae_jax.data.images import (
    CHANNELS,
    ImageReader,
    contain_and_pad,
    cover,
    cover_and_crop,
    stretch,
)
from nvae_jax.data.sources.base import Dataset, Decoded, require
from nvae_jax.data.sources.checked import find_unreadable

FITS = {"crop": cover_and_crop, "random_crop": cover, "stretch": stretch, "pad": contain_and_pad}


def image_folder(
    path: str,
    size: int | Sequence[int],
    channels: int = 3,
    fit: str = "crop",
    flip: bool = False,
    test_fraction: float = 0.1,
    unreadable: str = "error",
) -> Dataset:
    """The images in a folder and its sub-folders, of any size, mode and file format of Pillow's.

    An image belongs to the test split by a hash of its path below the folder: it never changes
    sides when other images come or go. Before first use every file is read once, which is
    remembered in the user's cache folder, so that a broken one is found at the start of a run.

    Args:
      path: the folder. Names that begin with a dot are left out.
      size: pixels of a side, an int or (h, w).
      channels: 1 for grey, 3 for RGB, 4 for RGBA. Transparent pixels lie on white but for 4.
      fit: how an image comes to `size`. "crop": scaled to cover it, the middle is kept;
        "random_crop": in training a random part of that, drawn anew in each epoch; "stretch":
        scaled without regard to proportions; "pad": scaled to fit in, between black borders.
      flip: whether training images are mirrored left to right at random.
      test_fraction: expected part of the images that is for testing, between 0 and 1.
      unreadable: "error" refuses a folder with files that cannot be read, "skip" leaves them out;
        both list them.

    Raises:
      ValueError: a value that is not allowed, no such folder, no images in it or in one of its
        splits, or unreadable ones.
    """
    shape = tuple(size) if isinstance(size, Sequence) else (size, size)
    positive = len(shape) == 2 and all(isinstance(s, int) and s > 0 for s in shape)
    require("size", size, positive, "a positive int or (h, w)")
    require("channels", channels, channels in CHANNELS, ", ".join(map(str, CHANNELS)))
    require("fit", fit, fit in FITS, ", ".join(FITS))
    require("test_fraction", test_fraction, 0 < test_fraction < 1, "between 0 and 1")
    require("unreadable", unreadable, unreadable in ("error", "skip"), "error, skip")

    root = Path(path).expanduser()
    require("path", path, root.is_dir(), "a folder")
    names = list_images(root)
    require("path", path, bool(names), f"a folder with images ({', '.join(_some_suffixes())}, …)")
    broken = find_unreadable(root, names)
    if broken:
        listed = "".join(f"\n  {name}: {error}" for name, error in broken.items())
        message = f"{len(broken)} of {len(names)} files in {root} are unreadable:{listed}"
        if unreadable == "error":
            raise ValueError(
                f"{message}\nRemove them, or leave them out by --config.data.unreadable=skip"
            )
        logging.warning("%s\nThey are left out.", message)

    splits: dict[bool, list[str]] = {False: [], True: []}
    for name in names:
        if name not in broken:
            splits[is_test(name, test_fraction)].append(name)
    for for_test, split in splits.items():
        if not split:
            raise ValueError(
                f"data.test_fraction is {test_fraction}, which leaves none of {root}'s "
                f"{len(names) - len(broken)} images to {'test' if for_test else 'train'}; allowed: "
                f"{'larger' if for_test else 'smaller'} ones"
            )
    height, width = shape
    test_fit = cover_and_crop if fit == "random_crop" else FITS[fit]
    train, test = (
        Decoded(
            Files(root, tuple(files)),
            ImageReader(channels, functools.partial(geometry, height=height, width=width)),
        )
        for files, geometry in ((splits[False], FITS[fit]), (splits[True], test_fit))
    )
    return Dataset(
        name="image_folder",
        image_shape=(height, width, channels),
        train=train,
        test=test,
        flip=flip,
        random_crop=fit == "random_crop",
    )


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
    suffixes = Image.registered_extensions()
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


def _some_suffixes() -> list[str]:
    return [s for s in (".jpg", ".png", ".webp", ".tif") if s in Image.registered_extensions()]
