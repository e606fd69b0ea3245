"""Images and arrays as the content of files."""

from __future__ import annotations

import io
from typing import Any, Literal

import numpy as np

from nvae_jax.workdir import image_grid

Animation = Literal["gif", "webp", "apng"]


def to_levels(images: np.ndarray) -> np.ndarray:
    """Pixels in [0, 1] as uint8; values outside are clipped.

    Raises: FloatingPointError if there are pixels that are not finite.
    """
    if not np.isfinite(images).all():
        raise FloatingPointError(
            "images have pixels that are not finite; a lower temperature, or other batch-norm "
            "statistics (recalibrate), may do"
        )
    return np.round(255 * np.clip(images, 0, 1)).astype(np.uint8)


def png(images: np.ndarray, columns: int | None = None, padding: int = 2) -> bytes:
    """A grid of images (N, H, W, 1 or 3) in [0, 1] as a PNG file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image_grid(images, columns, padding)).save(file, format="PNG")
    return file.getvalue()


def npz(**arrays: Any) -> bytes:
    """Arrays as an .npz file."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def animation(frames: np.ndarray, kind: Animation, seconds: float = 0.1) -> bytes:
    """Frames of images side by side, forward, back and again without end.

    Args:
      frames: (F, N, H, W, 1 or 3) in [0, 1].
      kind: of file.
      seconds: that each frame is shown.
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
