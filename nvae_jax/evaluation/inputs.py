"""Images that a model is given: examples of a split, files, or arrays."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np

from nvae_jax.data.images import CHANNELS, ImageReader
from nvae_jax.data.loader import random_crop
from nvae_jax.data.sources import Dataset, Source, read_many
from nvae_jax.errors import ConfigError, reading, reason, require
from nvae_jax.evaluation.trained import TrainedModel
from nvae_jax.image_spec import ImageSpec

SPLITS = ("train", "test")
_SLACK = 1e-5  # beyond 0 and 1, from rounding

T = TypeVar("T", bound=Any)


def fixed_split(dataset: Dataset, split: str) -> Source:
    """A split at the size that the model sees.

    Where training crops images at random, example i has one crop for good, at a place drawn by i.

    Raises:
      ConfigError: there is no such split.
    """
    require("split", split, split in SPLITS, ", ".join(SPLITS))
    source = getattr(dataset, split)
    cropped = dataset.random_crop and split == "train"
    return _FixedCrops(source, dataset.image) if cropped else source


@dataclasses.dataclass(frozen=True, eq=False)
class _FixedCrops:
    source: Source
    image: ImageSpec

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int, /) -> np.ndarray:
        height, width, _ = self.image.shape
        return random_crop(self.source[index], height, width, np.random.default_rng(index))


def read_pixels(image: ImageSpec, source: Source, index: np.ndarray) -> np.ndarray:
    """Evaluation pixels (N, H, W, C) of the examples of a split at the positions `index` (N,)."""
    return _pixels(image, read_many(source, index), index)


def with_images(model: TrainedModel, options: T, number: int) -> T:
    """The options of a mode, which name the images that it looks at.

    Args:
      model: the model.
      options: with a field `images`, as `load_images` reads it, or None.
      number: how many images of the test split they are then, or all if they are fewer.
    """
    if options.images is not None:
        return options
    last = min(number, len(model.dataset.test)) - 1
    return dataclasses.replace(options, images=(f"test:0-{last}",))


def load_images(model: TrainedModel, names: Sequence[str], field: str) -> np.ndarray:
    """The images that `names` stand for, as the model sees them.

    A name is `test:3`, `train:0-7` (both ends included), or the path of an image file, which is
    read as training reads its files, and comes to the model's size and border. Binary models see
    binarised images, the same at every call. The dataset is opened only if a name stands for
    examples of it.

    Args:
      model: the model; its dataset and image size are meant.
      names: the names of the images.
      field: what to call `names` in messages.

    Returns: (N, H, W, C) float32 in [0, 1].

    Raises:
      ConfigError: a name is not of these forms or beyond the end of its split, or a file is missing
        or cannot be read.
    """
    require(field, tuple(names), len(names) > 0, "test:3, train:0-7 or image files")
    image = model.config.image
    levels: list[np.ndarray] = []
    index: list[int] = []
    for name in names:
        if found := re.fullmatch(rf"({'|'.join(SPLITS)}):(\d+)(?:-(\d+))?", name):
            source = fixed_split(model.dataset, found[1])
            first, last = int(found[2]), int(found[3] or found[2])
            inside = first <= last < len(source)
            require(field, name, inside, f"{found[1]}:0 to {found[1]}:{len(source) - 1}")
            levels += read_many(source, range(first, last + 1))
            index += range(first, last + 1)
        else:
            levels.append(_read_file(model, name, field))
            index.append(len(index))
    return _pixels(image, levels, np.asarray(index))


def pixels_of(model: TrainedModel, images: Any, field: str = "images") -> tuple[np.ndarray, bool]:
    """Images that are there as values, as the model sees them.

    Pixels that the model sees are the same again.

    Args:
      model: the model; its image size is meant.
      images: one image, or a batch: an array (N, H, W, C), or a list of images. An image is an
        array (H, W, C), or (H, W) if the model's are grey, of uint8 levels or floats in [0, 1],
        with or without the model's border; or one of Pillow's images of any size, which is treated
        as a file is.
      field: what to call `images` in messages.

    Returns: (N, H, W, C) float32 in [0, 1], and whether it was one image. Image i of a binary model
      is binarised as example i of a split is.

    Raises:
      ConfigError: there are none, or they are not images of the model's size.
    """
    from PIL import Image

    if isinstance(images, list | tuple):
        require(field, images, len(images) > 0, "one image or more")
        alone, levels = False, [_levels_of(model, image, field) for image in images]
    elif isinstance(images, Image.Image) or np.ndim(images) < 3:
        alone, levels = True, [_levels_of(model, images, field)]
    else:
        array = np.asarray(images)
        require(field, array.shape, array.size > 0, "one image or more")
        alone = array.ndim == 3 and array.shape[-1] == model.config.image.channels
        levels = [_levels_of(model, image, field) for image in (array[None] if alone else array)]
    return _pixels(model.config.image, levels, np.arange(len(levels))), alone


def _levels_of(model: TrainedModel, image: Any, field: str) -> np.ndarray:
    """The levels of one image, (H, W, C) uint8."""
    from PIL import Image

    spec = model.config.image
    if isinstance(image, Image.Image):
        reader = _file_reader(model)
        try:
            return reader.pixels(image)
        except Exception as error:  # Pillow's, of all kinds
            raise ConfigError(
                f"{field} cannot be read: {reason(error)}; allowed: images"
            ) from error
    array = np.asarray(image)
    if array.ndim == 2:
        array = array[..., None]
    bordered = array.shape == spec.shape
    fits = bordered or array.shape == spec.inner_shape
    allowed = f"{spec.inner_shape}, as this model has them, or one of Pillow's images of any size"
    require(f"the shape of {field}", array.shape, fits, allowed)
    if array.dtype != np.uint8:
        values = f"{array.dtype}"
        real = np.issubdtype(array.dtype, np.floating)
        if real and (real := bool(np.isfinite(array).all())):
            values += f" from {array.min():g} to {array.max():g}"
            real = -_SLACK <= array.min() <= array.max() <= 1 + _SLACK
        require(field, values, real, "uint8 from 0 to 255, or floats from 0 to 1")
        array = np.round(255 * np.clip(array.astype(np.float64), 0, 1)).astype(np.uint8)
    return array if bordered else spec.with_border(array[None])[0]


def _pixels(image: ImageSpec, levels: Sequence[np.ndarray], index: np.ndarray) -> np.ndarray:
    pixels = image.evaluation_pixels(jnp.asarray(np.stack(levels)), jnp.asarray(index))
    return np.asarray(pixels)


def _read_file(model: TrainedModel, name: str, field: str) -> np.ndarray:
    """The levels of an image file, (H, W, C) uint8, by the reader that training uses."""
    reader = _file_reader(model)
    # Pillow raises all kinds of exceptions for broken files.
    with reading(field, name, "test:3, train:0-7 or image files", Exception):
        path = os.path.expanduser(name)
        if os.path.exists(path) and not os.path.isfile(path):
            raise OSError("it is no file")  # reading a pipe would wait for ever
        return reader(path)


def _file_reader(model: TrainedModel) -> ImageReader:
    image = model.config.image
    allowed = f"{', '.join(map(str, CHANNELS))} channels, to read files"
    require("model.image_shape", image.shape, image.channels in CHANNELS, allowed)
    return model.run.data.file_reader(image)
