"""Images as tiles of the model's size, in reading order.

Tiles start at multiples of the model's size. At the right and lower edges, a tile is completed by
repeating the image's last column and row; what was added is seen by the network but is not coded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

import numpy as np


def sizes(shapes: Iterable[tuple[int, int]], tile: tuple[int, int]) -> np.ndarray:
    """(rows, columns) that images of shapes (H, W) have in each of their tiles; (N, 2) int16."""
    parts = []
    for shape, same in groupby(shapes):
        rows, columns = (
            np.minimum(size, length - np.arange(0, length, size)).astype(np.int16)
            for length, size in zip(shape, tile, strict=True)
        )
        one = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)
        parts.append(np.tile(one, (len([*same]), 1)))
    return np.concatenate(parts)


def number(shape: Sequence[int], tile: tuple[int, int]) -> int:
    """How many tiles an image of the shape (H, W) has."""
    return -(-shape[0] // tile[0]) * -(-shape[1] // tile[1])


def masks(sizes: np.ndarray, tile: tuple[int, int]) -> np.ndarray:
    """Which pixels of tiles are the images' own, (N, h, w) bool, see `sizes`."""
    rows, columns = (np.arange(length) for length in tile)
    return (rows[:, None] < sizes[:, 0, None, None]) & (columns < sizes[:, 1, None, None])


def completed(part: np.ndarray, tile: tuple[int, int]) -> np.ndarray:
    """A part of an image (rows, columns, C) as a whole tile (h, w, C)."""
    missing = [(0, size - length) for size, length in zip(tile, part.shape[:2], strict=True)]
    return np.pad(part, (*missing, (0, 0)), mode="edge")


def split(image: np.ndarray, tile: tuple[int, int]) -> np.ndarray:
    """The tiles (N, h, w, C) of an image (H, W, C)."""
    height, width = image.shape[:2]
    return np.stack(
        [
            completed(image[top : top + tile[0], left : left + tile[1]], tile)
            for top in range(0, height, tile[0])
            for left in range(0, width, tile[1])
        ]
    )


def join(tiles: np.ndarray, height: int, width: int) -> np.ndarray:
    """The image (H, W, C) that `split` was given."""
    _, h, w, channels = tiles.shape
    columns = -(-width // w)
    rows = tiles.reshape(-1, columns, h, w, channels).transpose(0, 2, 1, 3, 4)
    return rows.reshape(-1, columns * w, channels)[:height, :width]
