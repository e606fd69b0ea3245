"""Checks of images: a CRC-32 of the levels of each, or of a run of small ones."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

CHECKED_BYTES = 1024  # images below this size, as they are stored raw, share a check


def check_word(images: Sequence[np.ndarray]) -> int:
    """The CRC-32 of the levels of images, one after the other."""
    check = 0
    for image in images:
        check = zlib.crc32(image.tobytes(), check)
    return check


def check_runs(shapes: Sequence[tuple[int, int]], bits_per_pixel: int) -> list[slice]:
    """Runs of a stream's images that share a check: as many as make up CHECKED_BYTES.

    Args:
      shapes: (height, width) of the images of a stream.
      bits_per_pixel: of all channels, as they are stored raw.
    """
    runs, start, size = [], 0, 0.0
    for number, (height, width) in enumerate(shapes):
        size += height * width * bits_per_pixel / 8
        if size >= CHECKED_BYTES or number == len(shapes) - 1:
            runs.append(slice(start, number + 1))
            start, size = number + 1, 0.0
    return runs
