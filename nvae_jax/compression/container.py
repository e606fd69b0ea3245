"""The file of compressed images: magic, version, header, index, streams.

=========  ==========================================================================
8 bytes    magic, `MAGIC`
uint16     version of the format
uint32     length of the header
uint32     CRC-32 of the header
uint32     CRC-32 of all that comes before
           header: a JSON object, deflated
           check words: a CRC-32 of the levels of every image, or run of small ones
           streams: 32-bit words of ANS, one stream after the other
=========  ==========================================================================

All numbers are little-endian. Every part has a CRC-32, in the header or before it, so a file that
is cut or damaged anywhere is refused before anything is decoded; and so is one whose header says
what no header may say, see `header`.
"""

from __future__ import annotations

import dataclasses
import struct
import zlib
from collections.abc import Sequence

import numpy as np

from nvae_jax.compression.header import Coding, Header, MadeWith, Shapes, pack, runs_of, unpack
from nvae_jax.errors import ConfigError, require

MAGIC = b"\x93NVAE\r\n\x1a"  # not text, and what transfers as text damage is in it
VERSION = 2
VERSIONS = (1, VERSION)  # that are read; in the first, the stack is not scrambled
_START = struct.Struct("<8sHII")


@dataclasses.dataclass(frozen=True)
class Stream:
    """Images that are coded one after the other, and can be decoded without those of other streams.

    Attributes:
      images: how many.
      opening: tiles, the last ones of the stream, that open it.
      opening_bytes: of those tiles, as `opening.compress_opening` returns them.
      words: the ANS stack at the end, (N,) uint32.
    """

    images: int
    opening: int
    opening_bytes: int
    words: np.ndarray


@dataclasses.dataclass(frozen=True)
class Container:
    """All that is in a file.

    Attributes:
      made_with: what has to be the same to decode it.
      coding: how the model codes.
      names: of the images; `test:0-99` names a hundred.
      shapes: (height, width) of every image.
      check_words: (N,) uint32.
      streams: the streams.
      version: of the format.
    """

    made_with: MadeWith
    coding: Coding
    names: Sequence[str]
    shapes: Shapes
    check_words: np.ndarray
    streams: Sequence[Stream]
    version: int = VERSION


def write(container: Container) -> bytes:
    """The file's content."""
    contents = [_bytes(stream.words) for stream in container.streams]
    checks = _bytes(container.check_words)
    header = Header(
        made_with=container.made_with,
        coding=container.coding,
        names=tuple(container.names),
        shapes=tuple(runs_of(container.shapes)),
        checks=(len(container.check_words), zlib.crc32(checks)),
        streams=tuple(
            (s.images, s.opening, s.opening_bytes, len(s.words), zlib.crc32(content))
            for s, content in zip(container.streams, contents, strict=True)
        ),
    )
    packed = pack(header)
    start = _START.pack(MAGIC, container.version, len(packed), zlib.crc32(packed))
    start += struct.pack("<I", zlib.crc32(start))
    return b"".join([start, packed, checks, *contents])


def read(content: bytes, field: str) -> Container:
    """The container of a file's content.

    Args:
      content: of the file.
      field: what to call the file in messages.

    Raises:
      ConfigError: it is not such a file, of another version, damaged, or contradicts itself; the
        message says which.
    """
    known = content[: len(MAGIC)] == MAGIC
    require(f"the start of {field}", content[: len(MAGIC)], known, "a file of mode compress")
    first = _START.size + 4
    intact = len(content) >= first
    if intact:
        (check,) = struct.unpack_from("<I", content, _START.size)
        intact = zlib.crc32(content[: _START.size]) == check
    if not intact:
        raise _damaged(field, "its first bytes")
    _, version, length, check = _START.unpack_from(content)
    allowed = " or ".join(map(str, VERSIONS))
    require(f"the format of {field}", version, version in VERSIONS, allowed)
    packed = content[first : first + length]
    if len(packed) != length or zlib.crc32(packed) != check:
        raise _damaged(field, "its header")
    header = unpack(packed, field)
    place = first + length
    parts = [header.checks, *(stream[3:] for stream in header.streams)]
    words = []
    for number, (count, check) in enumerate(parts):
        part = content[place : place + 4 * count]
        place += 4 * count
        if len(part) != 4 * count or zlib.crc32(part) != check:
            what = "its checks of images" if number == 0 else f"stream {number - 1}"
            raise _damaged(field, what)
        words.append(np.frombuffer(part, "<u4").astype(np.uint32))
    if place != len(content):
        raise _damaged(field, f"{len(content) - place} bytes at its end")
    streams = [
        Stream(images, opening, size, part)
        for (images, opening, size, _, _), part in zip(header.streams, words[1:], strict=True)
    ]
    return Container(
        header.made_with,
        header.coding,
        header.names,
        header.image_shapes,
        words[0],
        streams,
        version,
    )


def _damaged(field: str, what: str) -> ConfigError:
    return ConfigError(
        f"{field} is damaged or cut off: {what}; allowed: the file as it was written"
    )


def _bytes(words: np.ndarray) -> bytes:
    return words.astype("<u4").tobytes()
