"""The header of a file of compressed images, a JSON object: what it may say.

Checksums tell damage from what was written, but anybody can compute them. So all that a header says
is checked before it is believed, by the same rules by which it is written: types, ranges, and
whether its parts agree with each other. Memory and work are bounded by the limits here.
"""

from __future__ import annotations

import dataclasses
import json
import re
import zlib
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np

from nvae_jax.compression.latents import PRECISIONS
from nvae_jax.compression.names import count_names
from nvae_jax.errors import ConfigError, require
from nvae_jax.fields import from_mapping
from nvae_jax.image_spec import LARGEST_SIDE

LARGEST_BATCH = 1024
LARGEST_HEADER = 2**24  # bytes, inflated: with names of 16 bytes, a million images
MOST_IMAGES = 2**21  # of a file
LARGEST_STREAM = LARGEST_SIDE**2  # pixels

_REST = 2**20  # bytes of a header beside names, shapes and streams, far more than there are
_STREAM = 64  # bytes of a header for each stream, at most
_WORD = 2**32
_LONGEST_MESSAGE = 400
_IMAGES = f"1 to {MOST_IMAGES} in a file"

Shapes = Sequence[tuple[int, int]]  # (height, width) of each image


@dataclasses.dataclass(frozen=True)
class MadeWith:
    """What has to be the same to decode a file.

    Attributes:
      model: hash of the model's configuration and variables, see `origin.model_hash`.
      fingerprint: of the numbers that the network computes, see `Network.fingerprint`.
      dtype: of the network.
      device: its kind.
      machine: the kind of processor of the host.
      jax: its version.
      jaxlib: its version.
      numpy: its version.
      constriction: its version.
    """

    model: str
    fingerprint: int
    dtype: str
    device: str
    machine: str
    jax: str
    jaxlib: str
    numpy: str
    constriction: str

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            field = f"header.made_with.{name}"
            if isinstance(value, str):
                plain = len(value) <= 200 and value.isprintable()
                require(field, value, plain, "up to 200 characters that can be printed")
        fits = 0 <= self.fingerprint < _WORD
        require("header.made_with.fingerprint", self.fingerprint, fits, "0 to 2**32 - 1")


@dataclasses.dataclass(frozen=True)
class Coding:
    """How the model codes.

    Attributes:
      batch_size: of the network.
      low_bits: bits of a level below those that the model codes, which are stored as they are.
      levels: for each group, a digit per latent channel: its precision and 1.
    """

    batch_size: int
    low_bits: int
    levels: tuple[str, ...]

    def __post_init__(self):
        fits = 1 <= self.batch_size <= LARGEST_BATCH
        require("header.coding.batch_size", self.batch_size, fits, f"1 to {LARGEST_BATCH}")
        require("header.coding.low_bits", self.low_bits, 0 <= self.low_bits < 8, "0 to 7")
        digits = f"[0-{PRECISIONS[-1] + 1}]*"
        known = all(re.fullmatch(digits, group) for group in self.levels)
        require("header.coding.levels", self.levels, known, f"digits 0 to {PRECISIONS[-1] + 1}")

    @classmethod
    def of(cls, batch_size: int, low_bits: int, precisions: Sequence[np.ndarray]) -> Coding:
        """With the precisions (Z,) of each group, see `latents`."""
        levels = tuple("".join(f"{p + 1:x}" for p in group) for group in precisions)
        return cls(batch_size, low_bits, levels)

    @property
    def precisions(self) -> list[np.ndarray]:
        """(Z,) of each group."""
        return [np.asarray([int(digit) - 1 for digit in group], int) for group in self.levels]


@dataclasses.dataclass(frozen=True)
class Header:
    """All that a header says.

    Attributes:
      made_with: what has to be the same to decode it.
      coding: how the model codes.
      names: of the images, see `names`.
      shapes: (number, height, width) of images in a row that have the same shape.
      checks: how many check words there are, and their CRC-32.
      streams: (images, tiles of the opening, bytes of the opening, words, CRC-32) of each.
    """

    made_with: MadeWith
    coding: Coding
    names: tuple[str, ...]
    shapes: tuple[tuple[int, int, int], ...]
    checks: tuple[int, int]
    streams: tuple[tuple[int, int, int, int, int], ...]

    def __post_init__(self):
        for run in self.shapes:
            number, *sides = run
            fits = 1 <= number <= MOST_IMAGES and min(sides) >= 1 and max(sides) <= LARGEST_SIDE
            allowed = f"1 to {MOST_IMAGES} images, with sides of 1 to {LARGEST_SIDE} pixels"
            require("header.shapes", run, fits, allowed)
        number = sum(run[0] for run in self.shapes)
        require(
            "the number of images in header.shapes", number, 1 <= number <= MOST_IMAGES, _IMAGES
        )
        for stream in self.streams:
            images, opening, size, *_ = stream
            fits = images >= 1 and min(stream) >= 0 and (opening > 0) == (size > 0)
            fits &= max(opening, size) < _WORD * 4
            allowed = "images, and an opening that has tiles and bytes or neither"
            require("header.streams", stream, fits, allowed)
        for count, check in (self.checks, *(stream[3:] for stream in self.streams)):
            fits = 0 <= count < _WORD and 0 <= check < _WORD
            require("header.checks or header.streams", (count, check), fits, "0 to 2**32 - 1")
        check_index(self.names, self.image_shapes, [stream[0] for stream in self.streams])

    @property
    def image_shapes(self) -> list[tuple[int, int]]:
        """(height, width) of every image."""
        return [
            shape for number, *sides in self.shapes for shape in [(sides[0], sides[1])] * number
        ]


def check_index(names: Sequence[str], shapes: Shapes, streams: Sequence[int]) -> None:
    """Checks the images of a file.

    Args:
      names: of the images.
      shapes: of the images.
      streams: how many images each stream has.

    Raises:
      ConfigError: there are too many, they are too large for a stream, or the numbers of images
        contradict each other.
    """
    require("the number of images", len(shapes), 1 <= len(shapes) <= MOST_IMAGES, _IMAGES)
    same = f"{len(shapes)}, the number of images"
    require("the number of images in streams", sum(streams), sum(streams) == len(shapes), same)
    named = count_names(names)
    require("the number of images with names", named, named == len(shapes), same)
    pixels = np.asarray(shapes, np.int64).prod(1)
    starts = np.cumsum([0, *streams[:-1]])
    largest = int(np.add.reduceat(pixels, starts).max())
    allowed = f"up to {LARGEST_STREAM}: fewer images in a stream"
    require("the pixels of a stream", largest, largest <= LARGEST_STREAM, allowed)
    size = len(json.dumps([list(names), runs_of(shapes)])) + _STREAM * len(streams)
    allowed = f"up to {LARGEST_HEADER - _REST}: fewer images in a file"
    require("the bytes of names and shapes", size, size <= LARGEST_HEADER - _REST, allowed)


def runs_of(shapes: Shapes) -> list[tuple[int, int, int]]:
    """(number, height, width) of images in a row that have the same shape."""
    return [(len([*same]), *shape) for shape, same in groupby(shapes)]


def pack(header: Header) -> bytes:
    """The bytes of a header."""
    text = json.dumps(dataclasses.asdict(header), separators=(",", ":"))
    return zlib.compress(text.encode(), 9)


def unpack(packed: bytes, field: str) -> Header:
    """The header that `pack` was given.

    Args:
      packed: its bytes.
      field: what to call the file in messages.

    Raises:
      ConfigError: it says what no header may say; the message names it.
    """
    try:
        inflater = zlib.decompressobj()
        text = inflater.decompress(packed, LARGEST_HEADER + 1)
        if len(text) > LARGEST_HEADER:
            raise ValueError(f"the header inflates to more than {LARGEST_HEADER} bytes")
        if not inflater.eof or inflater.unused_data:
            raise ValueError("the deflated header has another length")
        return from_mapping(Header, json.loads(text, object_pairs_hook=_fields), "header")
    except (zlib.error, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{field} is not what the mode compress writes: {_shortened(error)}"
        ) from error


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs) or not all(re.fullmatch("[a-z_]{1,50}", name) for name in fields):
        raise ValueError("names of fields are there twice, or are not names")
    return fields


def _shortened(error: Exception) -> str:
    text, half = str(error) or type(error).__name__, _LONGEST_MESSAGE // 2
    return text if len(text) <= 2 * half else f"{text[:half]} … {text[-half:]}"
