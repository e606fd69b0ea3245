"""The mode `decompress`: the images in a file that the mode `compress` has written."""

from __future__ import annotations

import dataclasses
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from etils import epath

from nvae_jax.command_line import validate
from nvae_jax.compression import container
from nvae_jax.compression.codec import decompress as decompress_images
from nvae_jax.compression.images import PILLOW
from nvae_jax.compression.names import expanded
from nvae_jax.errors import reading, require, writing
from nvae_jax.evaluation.trained import TrainedModel
from nvae_jax.modes.compress import progress
from nvae_jax.workdir import files


@dataclasses.dataclass(frozen=True)
class DecompressOptions:
    """Options of `decompress`.

    Attributes:
      file: a file that compress has written
      output: the folder to write PNG files to; by default decompress/<name of the file>
      only: numbers of images in the file, such as 0,5-7; only what they need is decoded; all by
        default
    """

    file: str
    output: str | None = None
    only: tuple[str, ...] | None = None

    def __post_init__(self):
        validate(self)


def decompress(model: TrainedModel, options: DecompressOptions) -> list[str]:
    """Writes the images of a file as PNG files.

    Args:
      model: the model that compressed them.
      options: which file, and which of its images.

    Returns: the paths of the files.

    Raises:
      ConfigError: the file is missing, damaged, of another model, or cannot be decoded on this
        machine; or there is a file in the way.
    """
    field = f"file {options.file!r}"
    path = Path(os.path.expanduser(options.file))
    with reading("file", options.file, "a file that the mode compress has written", ValueError):
        if path.exists() and not path.is_file():
            raise OSError("it is no file")  # reading a pipe would wait for ever
        content = path.read_bytes()
    names = expanded(container.read(content, field).names)
    chosen = None if options.only is None else _numbers(options.only, len(names))
    folder = model.workdir.results / "decompress" / Path(options.file).stem
    if options.output is not None:
        folder = epath.Path(os.path.expanduser(options.output))

    def target(number: int) -> epath.Path:
        return folder / f"{names[number]}.png"

    for number in range(len(names)) if chosen is None else chosen:
        with writing(target(number)):
            require("output", os.fspath(target(number)), not target(number).exists(), "new files")
    written = []
    done = progress(model, "decompressed")
    for number, image in decompress_images(model, content, chosen, field, done):
        files.write(target(number), _png(image))
        written.append(os.fspath(target(number)))
    model.workdir.log(f"{len(written):,} images: {os.fspath(folder)}")
    return written


def _numbers(only: Sequence[str], count: int) -> list[int]:
    allowed = f"numbers of images, such as 0,5-7, up to {count - 1}"
    numbers: list[int] = []
    for part in only:
        found = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part)
        require("only", part, found is not None, allowed)
        first, last = int(found[1]), int(found[2] or found[1])  # type: ignore[index]
        require("only", part, first <= last < count, allowed)
        numbers += range(first, last + 1)
    return numbers


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    channels = image.shape[-1]
    pixels = image[..., 0] if channels == 1 else image
    file = io.BytesIO()
    Image.fromarray(pixels, PILLOW[channels]).save(file, format="PNG")
    return file.getvalue()
