"""Images that a mode is given: examples of a split, or files."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from nvae_jax.data.sources import Dataset, Source
from nvae_jax.data.transforms import prepare_eval
from nvae_jax.evaluation.trained import TrainedModel
from nvae_jax.options import require

SPLITS = ("train", "test")


def fixed_split(dataset: Dataset, split: str) -> Source:
    """A split at the size that the model sees.

    Of images that training crops at random, example i has one crop for good, at a place drawn by i.

    Raises: ValueError if there is no such split.
    """
    require("split", split, split in SPLITS, ", ".join(SPLITS))
    source = getattr(dataset, split)
    cropped = dataset.random_crop and split == "train"
    return _FixedCrops(source, dataset.image_shape) if cropped else source


@dataclasses.dataclass(frozen=True, eq=False)
class _FixedCrops:
    source: Source
    image_shape: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int, /) -> np.ndarray:
        image, rng = self.source[index], np.random.default_rng(index)
        height, width, _ = self.image_shape
        top = rng.integers(image.shape[0] - height, endpoint=True)
        left = rng.integers(image.shape[1] - width, endpoint=True)
        return image[top : top + height, left : left + width]


def load_images(model: TrainedModel, names: Sequence[str], field: str) -> np.ndarray:
    """The images that `names` stand for, as the model sees them.

    A name is `test:3`, `train:0-7` (both ends are meant), or the path of an image file, which is
    cut and scaled to the model's size (Pillow, bilinear) and gets the border that the model
    expects. Binary models see binarised images, the same at every call.

    Args:
      model: whose dataset and size are meant.
      names: of images.
      field: what to call `names` in messages.

    Returns: (N, H, W, C) float32 in [0, 1].

    Raises:
      ValueError: a name is not of these forms, or beyond the end of its split.
      FileNotFoundError: there is no such file.
    """
    require(field, tuple(names), len(names) > 0, "test:3, train:0-7 or files of images")
    levels: list[np.ndarray] = []
    index: list[int] = []
    for name in names:
        if found := re.fullmatch(rf"({'|'.join(SPLITS)}):(\d+)(?:-(\d+))?", name):
            source = fixed_split(model.dataset, found[1])
            first, last = int(found[2]), int(found[3] or found[2])
            inside = first <= last < len(source)
            require(field, name, inside, f"{found[1]}:0 to {found[1]}:{len(source) - 1}")
            levels += [source[i] for i in range(first, last + 1)]
            index += range(first, last + 1)
        else:
            levels.append(_read_file(model, name))
            index.append(len(index))
    x = prepare_eval(
        jnp.asarray(np.stack(levels)),
        jnp.asarray(index),
        binarize=model.dataset.binarize,
        num_bits=model.config.num_bits,
    )
    return np.asarray(x)


def _read_file(model: TrainedModel, name: str) -> np.ndarray:
    from PIL import Image, ImageOps

    height, width, channels = model.config.image_shape
    border = model.config.border
    modes = {1: "L", 3: "RGB"}
    require("image_shape", model.config.image_shape, channels in modes, "1 or 3 channels of files")
    with Image.open(name) as file:
        size = (width - 2 * border, height - 2 * border)
        image = ImageOps.fit(file.convert(modes[channels]), size, Image.Resampling.BILINEAR)
    padding = ((border, border), (border, border), (0, 0))
    return np.pad(np.asarray(image).reshape(size[1], size[0], channels), padding)
