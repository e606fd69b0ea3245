"""Images in NumPy files."""

import os
import zipfile
from typing import Any

import numpy as np

from nvae_jax.data.sources.base import Dataset, Source, require

SPLITS = ("train", "test")


def numpy_arrays(path: str, binarize: bool = False, flip: bool = False, border: int = 0) -> Dataset:
    """Images in NumPy arrays: uint8, (N, H, W, C), or (N, H, W) for grey ones.

    Args:
      path: a folder with `train.npy` and `test.npy`, which may be larger than memory, or an .npz
        file with the arrays `train` and `test`, which is read at once.
      binarize: whether pixels are Bernoulli draws whose means are the grey levels.
      flip: whether training images are mirrored left to right at random.
      border: pixels of zeros to be added on each side, which the likelihood leaves out.

    Raises:
      ValueError: files that are missing or broken, or arrays of another kind.
    """
    require("border", border, isinstance(border, int) and border >= 0, "0 or more")
    folder = os.path.expanduser(path)
    sources: dict[str, Source]
    if os.path.isdir(folder):
        sources = {s: ArrayFile(os.path.join(folder, f"{s}.npy"), border) for s in SPLITS}
    else:
        sources = {
            name: np.pad(array, ((0, 0), (border, border), (border, border), (0, 0)))
            for name, array in _read_archive(folder).items()
        }
    shapes = {name: source[0].shape for name, source in sources.items()}
    if shapes["train"] != shapes["test"]:
        raise ValueError(f"{path} has images of different shapes, with border: {shapes}")
    height, width, channels = shapes["train"]
    return Dataset(
        name="numpy_arrays",
        image_shape=(height, width, channels),
        train=sources["train"],
        test=sources["test"],
        binarize=binarize,
        flip=flip,
        border=border,
    )


class ArrayFile:
    """Images in an .npy file, read as they are needed."""

    def __init__(self, path: str, border: int = 0):
        """Maps the file into memory.

        Raises:
          ValueError: there is no such file, it is broken, or it holds something else.
        """
        self._path, self._border = path, border
        try:
            images = np.load(path, mmap_mode="r")
        except (OSError, EOFError, ValueError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
        self._images = check_images(images, path)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int, /) -> np.ndarray:
        border = ((self._border, self._border), (self._border, self._border), (0, 0))
        return np.pad(self._images[index], border)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._path, self._border)  # not the images


def check_images(images: np.ndarray, where: str) -> np.ndarray:
    """`images` as (N, H, W, C).

    Raises:
      ValueError: not uint8, no images, or not as many axes.
    """
    if images.ndim == 3:
        images = images[..., np.newaxis]
    if images.dtype != np.uint8 or images.ndim != 4 or not images.size:
        raise ValueError(
            f"{where} holds {images.dtype} of shape {images.shape}; "
            "allowed: uint8 of shape (N, H, W, C) or (N, H, W)"
        )
    return images


def _read_archive(path: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file."""
    try:
        # np.load would leave a broken file open if it were to open it itself.
        with open(path, "rb") as file, np.load(file) as archive:
            return {name: check_images(archive[name], f"{path}: {name}") for name in SPLITS}
    except (OSError, EOFError, KeyError, zipfile.BadZipFile, TypeError, AttributeError) as error:
        raise ValueError(
            f"data.path is {path!r}, which cannot be read ({error}); allowed: a folder with "
            "train.npy and test.npy, or an .npz file with the arrays train and test"
        ) from error
