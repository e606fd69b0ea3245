"""Images in NumPy files."""

import dataclasses
import os
import zipfile
from typing import Any, ClassVar

import numpy as np

from nvae_jax.data.archives import read_npz
from nvae_jax.data.images import CHANNELS, add_border
from nvae_jax.data.sources.base import DataConfig, Dataset, Source
from nvae_jax.errors import ConfigError, reading, require
from nvae_jax.image_spec import ImageSpec

SPLITS = ("train", "test")

_FORM = "a folder with train.npy and test.npy, or an .npz file with the arrays train and test"


@dataclasses.dataclass(frozen=True)
class NumpyArrays(DataConfig):
    """Images in NumPy arrays: uint8, (N, H, W, C), or (N, H, W) for grey ones."""

    name: ClassVar[str] = "numpy_arrays"
    is_own: ClassVar[bool] = True

    path: str  # a folder with train.npy and test.npy, which may be larger than memory, or an .npz
    binarize: bool = False  # whether pixels are Bernoulli draws whose means are the grey levels
    flip: bool = False  # whether training images are mirrored left to right at random
    border: int = 0  # pixels of zeros to add on each side, which the likelihood leaves out

    def __post_init__(self):
        require("data.border", self.border, self.border >= 0, "0 or more")

    @property
    def image(self) -> ImageSpec | None:
        return None

    def open(self) -> Dataset:
        folder = os.path.expanduser(self.path)
        require("data.path", self.path, os.path.exists(folder), _FORM)
        sources: dict[str, Source]
        if os.path.isdir(folder):
            sources = {s: ArrayFile(os.path.join(folder, f"{s}.npy"), self.border) for s in SPLITS}
        else:
            border = (self.border, self.border)
            sources = {
                name: np.pad(array, ((0, 0), border, border, (0, 0)))
                for name, array in _read_archive(folder).items()
            }
        shapes = {name: source[0].shape for name, source in sources.items()}
        if shapes["train"] != shapes["test"]:
            raise ConfigError(
                f"data.path is {self.path!r}, with images of shapes {shapes}, border included; "
                "allowed: one shape"
            )
        height, width, channels = shapes["train"]
        return Dataset(
            name=self.name,
            image=ImageSpec(height, width, channels, self.border, binarize=self.binarize),
            train=sources["train"],
            test=sources["test"],
            flip=self.flip,
        )


class ArrayFile:
    """Images in an .npy file, read as they are needed."""

    def __init__(self, path: str, border: int = 0):
        """Maps the file into memory.

        Raises:
          ConfigError: the file is missing or broken, or holds something else.
        """
        self._path, self._border = path, border
        with reading("data.path", path, _FORM, EOFError, ValueError):
            images = np.load(path, mmap_mode="r")
            if not isinstance(images, np.ndarray):
                raise ValueError("it is an .npz file")
        self._images = check_images(images, path)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int, /) -> np.ndarray:
        return add_border(np.asarray(self._images[index]), self._border)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._path, self._border)  # not the images


def check_images(images: np.ndarray, where: str) -> np.ndarray:
    """`images` as (N, H, W, C).

    Raises:
      ConfigError: another type or number of axes, or no images.
    """
    found, allowed = f"{images.dtype} of shape {images.shape}", "uint8 of shape (N, H, W, C)"
    if images.ndim == 3:
        images = images[..., np.newaxis]
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ConfigError(f"{where} holds {found}; allowed: {allowed} or (N, H, W)")
    if not images.size:
        raise ConfigError(f"{where} holds {found}, which is no image; allowed: one image or more")
    if images.shape[1] <= max(CHANNELS) < min(images.shape[2:]):
        raise ConfigError(
            f"{where} holds {found}, where axis 1 seems to be the channels; allowed: {allowed}, "
            "with the channels last, as np.moveaxis(images, 1, -1) has them"
        )
    return images


def _read_archive(path: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file."""
    broken = (EOFError, KeyError, ValueError, zipfile.BadZipFile, TypeError, AttributeError)
    with reading("data.path", path, _FORM, *broken), open(path, "rb") as file:
        arrays = read_npz(file)
        return {name: check_images(arrays[name], f"{path}: {name}") for name in SPLITS}
