"""Image files as pixels: decoding, by Pillow and for plain PNG files by ISA-L, and geometry.

Resizing is bilinear with antialiasing, as Pillow does it and the original implementation used it.
"""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from nvae_jax.data.png import read_together

if TYPE_CHECKING:  # Pillow is not needed to describe images, only to read them
    from PIL import Image

CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}  # what an image of so many channels is to Pillow

File = bytes | str | os.PathLike[str]
Geometry = Callable[[Any], Any]  # from one of Pillow's images to another


@dataclasses.dataclass(frozen=True)
class ImageReader:
    """Reads an encoded image, or an image file, as (H, W, C) uint8.

    Picklable where `geometry` is: use a `functools.partial` of this module's functions.

    Attributes:
      channels: C, one of `CHANNELS`.
      geometry: what crops, resizes or pads the image; None leaves it as it is.
      border: pixels of zeros added on each side afterwards.
    """

    channels: int = 3
    geometry: Geometry | None = None
    border: int = 0

    def __call__(self, file: File) -> np.ndarray:
        """The image that `file` is, encoded, or names.

        Raises:
          ValueError: it has more pixels than Pillow reads, which may be an attack.
          Exception: whatever Pillow raises for broken files.
        """
        from PIL import Image

        try:
            with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as encoded:
                return self.pixels(encoded)
        except Image.DecompressionBombError as error:
            most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
            raise ValueError(f"it has more than {most:,} pixels; scale it down first") from error

    def pixels(self, image: Image.Image) -> np.ndarray:
        """The same of one of Pillow's images."""
        image = convert(image, self.channels)
        if self.geometry is not None:
            image = self.geometry(image)
        return add_border(np.asarray(image).reshape(*image.size[::-1], -1), self.border)

    def many(self, files: Iterable[File]) -> list[np.ndarray]:
        """The same for many files, faster where they are plain PNG files."""
        if self.geometry is not None:
            return [self(file) for file in files]
        read = dataclasses.replace(self, border=0)
        images = read_together(files, CHANNELS[self.channels], read)
        return [add_border(image, self.border) for image in images]


def convert(image: Image.Image, channels: int) -> Image.Image:
    """An image of any of Pillow's modes as grey (1 channel), RGB (3) or RGBA (4), upright.

    16-bit levels keep their upper 8 bits, the transparent is laid on white where there is no
    channel for it, and a camera's note of its orientation is obeyed.

    Raises:
      ValueError: levels without a known range, or of more than 16 bits.
    """
    from PIL import ExifTags, Image, ImageOps

    image.load()
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("floating-point levels have no known range")
    if image.mode.startswith("I"):  # Pillow's own conversion clips 16 bits at 255.
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() >= 2**16:
            raise ValueError("levels of more than 16 bits")
        image = Image.fromarray((levels >> 8).astype(np.uint8))
    mode = CHANNELS[channels]
    if image.mode in ("LAB", "HSV"):  # which Pillow converts to nothing else
        image = image.convert("RGB")
    if image.mode != mode and channels != 4 and image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == mode else image.convert(mode)


def crop_and_resize(
    image: Image.Image, box: tuple[int, int, int, int], height: int, width: int
) -> Image.Image:
    """The part of an image in `box` (left, top, right, bottom; the last two excluded), resized."""
    return stretch(image.crop(box), height, width)


def stretch(image: Image.Image, height: int, width: int) -> Image.Image:
    """The image at `height` x `width`, whatever its proportions."""
    from PIL import Image

    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.BILINEAR)


def cover(image: Image.Image, height: int, width: int) -> Image.Image:
    """The image, proportions kept, at the smallest size that covers `height` x `width`.

    For a square this makes the shorter side as long as the square's, the longer one rounded down.
    """
    old_width, old_height = image.size
    if old_width * height <= old_height * width:
        return stretch(image, max(height, old_height * width // old_width), width)
    return stretch(image, height, max(width, old_width * height // old_height))


def cover_and_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """The middle of the image after `cover`."""
    image = cover(image, height, width)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def contain_and_pad(image: Image.Image, height: int, width: int) -> Image.Image:
    """The image, proportions kept, as large as fits `height` x `width`, between black borders."""
    from PIL import Image

    scale = min(height / image.height, width / image.width)
    size = (max(1, round(image.height * scale)), max(1, round(image.width * scale)))
    image = stretch(image, *size)
    padded = Image.new(image.mode, (width, height))
    padded.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return padded


def add_border(image: np.ndarray, border: int) -> np.ndarray:
    """(H, W, C) with `border` pixels of zeros on each side."""
    if not border:
        return image
    height, width, channels = image.shape
    # np.pad would take 20 us, as long as all the rest of a small image.
    bordered = np.zeros((height + 2 * border, width + 2 * border, channels), image.dtype)
    bordered[border:-border, border:-border] = image
    return bordered
