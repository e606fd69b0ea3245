"""Images as sheets, and as the content of picture files."""

from __future__ import annotations

import io
import math
from typing import Literal

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

Animation = Literal["gif", "webp", "apng"]


def image_grid(images: ArrayLike, columns: int | None = None, padding: int = 2) -> np.ndarray:
    """Arranges images on a white sheet, row by row. Pixels that are not finite show as magenta.

    Grey and RGB are shown as they are, RGBA on a checkerboard, and images of other numbers of
    channels as grey planes side by side.

    Args:
      images: (N, H, W, C) float in [0, 1] (values outside are clipped), N at least 1.
      columns: images in a row; by default as many as make about as many rows.
      padding: white pixels around each image.

    Returns:
      (rows * (H + padding) + padding, columns * (W' + padding) + padding, 3) uint8, where W' is W,
      or C * W for planes.

    Raises:
      ValueError: `images` has another shape or type, or `columns` is less than 1.
    """
    images = np.asarray(images)
    shaped = images.ndim == 4 and images.size
    if not (shaped and jnp.issubdtype(images.dtype, jnp.floating)):
        raise ValueError(
            f"images are {images.dtype}{list(images.shape)}; allowed: float[N > 0, H, W, C]"
        )
    images = _visible(images.astype(np.float32))
    count, height, width, _ = images.shape
    if columns is None:
        columns = math.ceil(math.sqrt(count))
    if columns < 1:
        raise ValueError(f"columns is {columns}; allowed: 1 or more")
    finite = np.isfinite(images).all(-1, keepdims=True)
    levels = np.where(finite, np.clip(np.nan_to_num(images), 0, 1), (1.0, 0.0, 1.0))
    pixels = np.round(255 * levels).astype(np.uint8)

    rows = math.ceil(count / columns)
    cells = np.full((rows * columns, height + padding, width + padding, 3), 255, np.uint8)
    cells[:count, :height, :width] = pixels
    sheet = cells.reshape(rows, columns, *cells.shape[1:]).swapaxes(1, 2)
    sheet = sheet.reshape(rows * (height + padding), columns * (width + padding), 3)
    return np.pad(sheet, ((padding, 0), (padding, 0), (0, 0)), constant_values=255)


def _visible(images: np.ndarray) -> np.ndarray:
    """Images (N, H, W, C) of any number of channels as grey or RGB ones."""
    count, height, width, channels = images.shape
    if channels in (1, 3):
        return images
    if channels == 4:
        side = max(1, min(height, width) // 8)
        rows, columns = np.indices((height, width)) // side
        board = np.where((rows + columns) % 2, 0.6, 0.8)[..., None]
        alpha = images[..., 3:]
        return alpha * images[..., :3] + (1 - alpha) * board
    return images.transpose(0, 1, 3, 2).reshape(count, height, channels * width, 1)


def to_levels(images: np.ndarray) -> np.ndarray:
    """Pixels in [0, 1] as uint8; values outside are clipped.

    Raises: FloatingPointError if there are pixels that are not finite.
    """
    if not np.isfinite(images).all():
        raise FloatingPointError(
            "images have pixels that are not finite; a lower --temperature, or --recalibrate "
            "where the mode has it, may do"
        )
    return np.round(255 * np.clip(images, 0, 1)).astype(np.uint8)


def png(
    images: ArrayLike, columns: int | None = None, padding: int = 2, enlarge: bool = False
) -> bytes:
    """A grid of images (N, H, W, C) in [0, 1], see `image_grid`, as a PNG file.

    With `enlarge`, small images are enlarged by a whole factor, so that people can see them: a side
    of 32 pixels becomes one of 64.
    """
    from PIL import Image

    images = np.asarray(images)
    grid = image_grid(images, columns, padding)
    if enlarge:
        factor = max(1, 64 // max(images.shape[1:3]))
        grid = grid.repeat(factor, 0).repeat(factor, 1)
    file = io.BytesIO()
    Image.fromarray(grid).save(file, format="PNG")
    return file.getvalue()


def enlarged(sheet: np.ndarray, side: int) -> np.ndarray:
    """A sheet (H, W, 3), enlarged by a whole factor so that its shorter side has about `side`."""
    factor = max(1, round(side / min(sheet.shape[:2])))
    # But not to be wider than screens are.
    factor = max(1, min(factor, 3 * side // max(sheet.shape[:2])))
    return sheet.repeat(factor, 0).repeat(factor, 1)


def image_file(image: np.ndarray) -> bytes:
    """One image (H, W, C) in [0, 1] as a PNG file; RGBA with its alpha, others as in a grid."""
    from PIL import Image

    if image.shape[-1] != 4:
        return png(image[None], 1, 0)
    file = io.BytesIO()
    Image.fromarray(to_levels(image)).save(file, format="PNG")
    return file.getvalue()


def animation(frames: np.ndarray, kind: Animation, seconds: float = 0.1) -> bytes:
    """Frames of images side by side as a picture file that runs forward, back, and again.

    Args:
      frames: (F, N, H, W, C) in [0, 1].
      kind: the file's format.
      seconds: how long each frame is shown.
    """
    from PIL import Image

    sheets = [Image.fromarray(image_grid(images)) for images in frames]
    sheets += sheets[-2:0:-1]
    file = io.BytesIO()
    formats = {"gif": "GIF", "webp": "WEBP", "apng": "PNG"}
    lossless = {"lossless": True} if kind == "webp" else {}
    sheets[0].save(
        file,
        format=formats[kind],
        save_all=True,
        append_images=sheets[1:],
        duration=round(1000 * seconds),
        loop=0,
        **lossless,
    )
    return file.getvalue()
