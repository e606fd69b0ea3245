"""Images as tiles of the model's size, in reading order.

Tiles start at multiples of the model's size. At the right and lower edges, a tile is completed by
repeating the image's last column and row; what was added is seen by the network but is not coded.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def grid(shape: Sequence[int], tile: tuple[int, int]) -> list[tuple[int, int]]:
    """(rows, columns) that an image of the shape (H, W) has in each of its tiles."""
    height, width = shape
    return [
        (min(tile[0], height - top), min(tile[1], width - left))
        for top in range(0, height, tile[0])
        for left in range(0, width, tile[1])
    ]


def number(shape: Sequence[int], tile: tuple[int, int]) -> int:
    """How many tiles an image of the shape (H, W) has."""
    return len(grid(shape, tile))


def masks(shapes: Sequence[tuple[int, int]], tile: tuple[int, int]) -> np.ndarray:
    """Which pixels of the tiles of images are the images' own, (N, h, w) bool."""
    sizes = np.asarray([size for shape in shapes for size in grid(shape, tile)])
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
