"""Plain PNG files, small ones many at a time.

Pillow inflates row by row, and with small files spends most of its time on other things than
pixels. Here ISA-L inflates each file at once, in half of the time of zlib. Then Pillow
undoes the filters of many small images as if they were a single one, the images below each other.

Source: Portable Network Graphics (PNG) Specification, Third Edition, W3C.
"""

import collections
import functools
import struct
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR"
_COLOURS = {"L": 0, "RGB": 2, "RGBA": 6}  # PNG's name for Pillow's
_LARGEST = 2**20  # levels of an image; with larger ones there is memory to lose
_TOGETHER = 2**17  # levels, as many as a core's cache has room for


def read_together(
    files: Iterable[Any], mode: str, read: Callable[[Any], np.ndarray]
) -> list[np.ndarray]:
    """Images, (H, W, C) uint8 each, of which plain PNG files are decoded here.

    Plain are 8 bits, the wanted mode, no interlacing, nothing but pixels in the file, and no more
    than 2^20 levels.

    Args:
      files: encoded images, or anything else that `read` accepts.
      mode: of Pillow's that images are wanted in: "L", "RGB" or "RGBA".
      read: reads all others.

    Raises:
      ValueError, OSError, isal_zlib.error: a plain PNG file is broken.
    """
    images: dict[int, np.ndarray] = {}  # by place in `files`
    sizes = collections.defaultdict(list)  # (height, width): (place, pixels)
    for place, file in enumerate(files):
        if plain := _parse(file, mode):
            size, pixels = plain
            sizes[size].append((place, pixels))
        else:
            images[place] = read(file)
    for (height, width), members in sizes.items():
        together = max(1, _TOGETHER // (height * width * len(mode)))
        for i in range(0, len(members), together):
            part = dict(members[i : i + together])
            images |= zip(part, _decode(part.values(), mode, height, width), strict=True)
    return [images[place] for place in range(len(images))]


def _parse(file: Any, mode: str) -> tuple[tuple[int, int], bytes] | None:
    """Height and width of a plain PNG file, and its pixels, filtered and compressed."""
    size = _size(file[:33], mode) if isinstance(file, bytes) else None
    if size is None:
        return None
    parts, place = [], 33
    while file[place + 4 : place + 8] == b"IDAT":
        end = place + 8 + int.from_bytes(file[place : place + 4])
        parts.append(file[place + 8 : end])
        place = end + 4  # The checksum is left out: the pixels have their own.
    return (size, b"".join(parts)) if file[place + 4 : place + 8] == b"IEND" else None


@functools.lru_cache(maxsize=128)
def _size(header: bytes, mode: str) -> tuple[int, int] | None:
    """Height and width, by the first 33 bytes of a file, if it may be a plain PNG file."""
    if len(header) != 33 or not header.startswith(_START):
        return None
    width, height, *kind, checksum = struct.unpack_from(">IIBBBBBI", header, len(_START))
    plain = kind == [8, _COLOURS[mode], 0, 0, 0] and checksum == zlib.crc32(header[12:29])
    return (height, width) if plain and 0 < height * width * len(mode) <= _LARGEST else None


def _inflate(pixels: bytes, size: int) -> bytes:
    """What was compressed, which has to be `size` bytes; it never requires much more memory."""
    from isal import isal_zlib

    inflater = isal_zlib.decompressobj()
    inflated = inflater.decompress(pixels, size + 1)
    if len(inflated) != size or not inflater.eof:
        raise ValueError(f"there are not {size} bytes of pixels")
    return inflated


def _decode(pixels: Iterable[bytes], mode: str, height: int, width: int) -> np.ndarray:
    """Images of one size, (N, H, W, C), from their pixels, filtered and compressed."""
    from PIL import Image

    row = 1 + width * len(mode)  # a filter's number and filtered levels
    images = [_inflate(p, height * row) for p in pixels]
    # Filters look at the row above, which is zeros for the first row of an image.
    column = bytes(row).join([*images, b""])
    size = (width, len(images) * (height + 1))
    # Pillow accepts only compressed data; level 0 is a copy.
    image = Image.frombytes(mode, size, zlib.compress(column, 0), "zip", mode, 0)
    return np.asarray(image).reshape(-1, height + 1, width, len(mode))[:, :height]
