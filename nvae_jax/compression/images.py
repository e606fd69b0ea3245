"""Images by name, to be kept byte for byte."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from nvae_jax.data.sources import read_many
from nvae_jax.data.sources.folder import list_images
from nvae_jax.errors import ConfigError, reading, require
from nvae_jax.evaluation.inputs import SPLITS, fixed_split
from nvae_jax.evaluation.trained import TrainedModel

# By channels: Pillow's modes whose pixels come back as they are, or the same in three channels.
_MODES = {1: ("1", "L"), 2: ("LA",), 3: ("1", "L", "P", "RGB"), 4: ("RGBA",)}
PILLOW = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_EXAMPLES = rf"({'|'.join(SPLITS)})(?::(\d{{1,9}})(?:-(\d{{1,9}}))?)?"
_ALLOWED = "test, test:0-99, image files or folders"


def named_images(
    model: TrainedModel, names: Sequence[str], field: str = "images"
) -> tuple[list[np.ndarray], list[str]]:
    """The images that names stand for, (H, W, C) uint8 each.

    A name is a split (`test`), examples of it (`test:3`, `test:0-99`), an image file, or a folder
    with image files. Examples are what the model sees of them: without the border, without the bits
    that the model leaves out, and binarised where its images are binary. Files are as they are.

    Args:
      model: the model.
      names: the names.
      field: what to call them in messages.

    Returns: the images, and their names in a file, see `names`.

    Raises:
      ConfigError: there is no such image, or it has pixels that the model's channels do not hold.
    """
    require(field, tuple(names), len(names) > 0, _ALLOWED)
    images: list[np.ndarray] = []
    stored: list[str] = []
    for name in names:
        if found := re.fullmatch(_EXAMPLES, name):
            some, label = _examples(model, name, found, field)
            images += some
            stored.append(label)
            continue
        root = Path(os.path.expanduser(name))
        if root.is_dir():
            files = list_images(root)
            require(field, name, len(files) > 0, f"{_ALLOWED}; the folder has no images")
        else:
            root, files = root.parent, [root.name]
        images += [_read(model, root / file, field) for file in files]
        stored += [file.replace(":", "_") for file in files]  # or some would name several images
    return images, stored


def _examples(
    model: TrainedModel, name: str, found: re.Match[str], field: str
) -> tuple[list[np.ndarray], str]:
    split = found[1]
    source = fixed_split(model.dataset, split)
    first = int(found[2] or 0)
    last = len(source) - 1 if found[2] is None else int(found[3] or found[2])
    inside = first <= last < len(source)
    require(field, name, inside, f"{split}:0 to {split}:{len(source) - 1}")
    index = np.arange(first, last + 1)
    spec = model.config.image
    levels = np.stack(read_many(source, index))
    if spec.binarize:
        pixels = spec.evaluation_pixels(jnp.asarray(levels), jnp.asarray(index))
        levels = np.asarray(pixels).astype(np.uint8) * np.uint8(255)
    else:
        levels = spec.reduce_bits(levels) << (8 - spec.num_bits)
    return list(spec.without_border(levels)), f"{split}:{first}-{last}"


def _read(model: TrainedModel, file: Path, field: str) -> np.ndarray:
    from PIL import Image

    channels = model.config.image_shape[-1]
    with reading(field, file, _ALLOWED, Exception):  # Pillow raises all kinds for broken files
        if file.exists() and not file.is_file():
            raise OSError("it is no file")  # reading a pipe would wait for ever
        with Image.open(file) as image:
            image.load()
            kept = image.mode in _MODES[channels] and not image.has_transparency_data
            kept |= channels in (2, 4) and image.mode == PILLOW[channels]
            if not kept:
                raise ConfigError(
                    f"{field}: {os.fspath(file)!r} has the mode {image.mode} of Pillow, of which "
                    f"{channels} channels of 8 bits do not keep everything; allowed: "
                    f"{', '.join(_MODES[channels])} without transparency"
                )
            pixels = np.asarray(image.convert(PILLOW[channels]))
    return pixels.reshape(*pixels.shape[:2], channels)
