"""Images that a mode is given: examples of a split, or files."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from nvae_jax.data.images import CHANNELS
from nvae_jax.data.loader import random_crop
from nvae_jax.data.sources import Dataset, Source, read_many
from nvae_jax.errors import reading, require
from nvae_jax.evaluation.trained import TrainedModel
from nvae_jax.image_spec import ImageSpec

SPLITS = ("train", "test")


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


def _pixels(image: ImageSpec, levels: Sequence[np.ndarray], index: np.ndarray) -> np.ndarray:
    pixels = image.evaluation_pixels(jnp.asarray(np.stack(levels)), jnp.asarray(index))
    return np.asarray(pixels)


def _read_file(model: TrainedModel, name: str, field: str) -> np.ndarray:
    """The levels of an image file, (H, W, C) uint8, by the reader that training uses."""
    image = model.config.image
    allowed = f"{', '.join(map(str, CHANNELS))} channels, to read files"
    require("model.image_shape", image.shape, image.inner_shape[-1] in CHANNELS, allowed)
    # Pillow raises all kinds of exceptions for broken files.
    with reading(field, name, "test:3, train:0-7 or image files", Exception):
        path = os.path.expanduser(name)
        if os.path.exists(path) and not os.path.isfile(path):
            raise OSError("it is no file")  # reading a pipe would wait for ever
        return model.run.data.file_reader(image)(path)
