"""Files decoded together against Pillow, which decodes them one by one."""

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
import stored
from isal import isal_zlib
from PIL import Image

from nvae_jax.data.png import read_together

COLOURS = {"L": 0, "RGB": 2, "RGBA": 6}


def chunk(kind, content):
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def make_png(rows, mode, filters=None, parts=1, depth=8, interlace=0, extra=b""):
    """A PNG file whose filtered rows are `rows` (H, W * C), with a filter to each."""
    height, width = len(rows), rows.shape[1] // len(mode)
    filters = np.zeros(height) if filters is None else filters
    filtered = np.concatenate([np.asarray(filters)[:, np.newaxis], rows], axis=1)
    compressed = zlib.compress(filtered.astype(np.uint8).tobytes())
    header = struct.pack(">IIBBBBB", width, height, depth, COLOURS[mode], 0, 0, interlace)
    cuts = np.linspace(0, len(compressed), parts + 1).astype(int)
    pixels = b"".join(chunk(b"IDAT", compressed[a:b]) for a, b in itertools.pairwise(cuts))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + pixels + chunk(b"IEND", b"")


def never(file):
    raise AssertionError("this file is a plain PNG file")


def by_pillow(file):
    with Image.open(io.BytesIO(file)) as image:
        return np.asarray(image).reshape(*image.size[::-1], -1)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_all_filters_in_all_orders_are_undone(mode):
    rng = np.random.default_rng(0)
    sizes = [(5, 7), (32, 32), (1, 3), (8, 1), (200, 250)]
    files = []
    for i in range(250):  # more than are decoded at once, of several sizes in turn
        height, width = sizes[i % len(sizes)]
        rows = rng.integers(0, 256, (height, width * len(mode)))
        files.append(make_png(rows, mode, rng.integers(0, 5, height), parts=1 + i % 3))
    images = read_together(files, mode, never)
    assert {image.shape for image in images} == {(*size, len(mode)) for size in sizes}
    for image, file in zip(images, files, strict=True):
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, by_pillow(file))


def test_levels_without_a_filter_are_the_file():
    rows = np.arange(24, dtype=np.uint8).reshape(2, 12)
    [image] = read_together([make_png(rows, "RGB")], "RGB", never)
    np.testing.assert_array_equal(image, rows.reshape(2, 4, 3))


def test_photographs_survive_what_programs_write():
    photos = stored.photos(70, 32, 32)
    files = [stored.encode(x, "png", optimize=bool(i % 2)) for i, x in enumerate(photos)]
    np.testing.assert_array_equal(read_together(files, "RGB", never), photos)


def test_other_files_are_read_by_themselves():
    rows = np.zeros((4, 12))
    plain = make_png(rows, "RGB")
    others = [
        "a path",
        b"",
        plain[:20],
        plain[:-12],  # without its end
        stored.encode(np.zeros((4, 4, 3), np.uint8), "jpeg"),
        make_png(rows, "L"),
        make_png(rows, "RGBA"),
        make_png(rows, "RGB", depth=16),
        make_png(rows, "RGB", interlace=1),
        make_png(rows, "RGB", extra=chunk(b"tRNS", bytes(6))),
        make_png(rows, "RGB", extra=chunk(b"eXIf", b"MM")),
        make_png(np.zeros((600, 3 * 600)), "RGB"),
        plain.replace(b"IHDR\x00\x00\x00\x04", b"IHDR\x00\x00\x00\x05"),  # not what it sums up to
    ]
    files = [plain, *others, plain]
    first, *rest, last = read_together(files, "RGB", lambda file: file)
    assert rest == others
    np.testing.assert_array_equal([first, last], np.zeros((2, 4, 4, 3)))
    assert read_together([], "RGB", never) == []


def test_broken_pixels_are_an_error():
    rows = np.random.default_rng(0).integers(0, 256, (4, 12))
    plain = make_png(rows, "RGB")
    broken = bytearray(plain)
    broken[60] ^= 255
    with pytest.raises(isal_zlib.error):
        read_together([plain, bytes(broken)], "RGB", never)
    sum_of_levels = plain.index(b"IEND") - 12  # the last four bytes of the compressed
    wrong = bytearray(plain)
    wrong[sum_of_levels] ^= 255
    with pytest.raises(isal_zlib.error):
        read_together([bytes(wrong)], "RGB", never)
    with pytest.raises((ValueError, OSError)):
        read_together([plain, make_png(rows, "RGB", filters=np.full(4, 9))], "RGB", never)
    header = struct.pack(">IIBBBBB", 4, 5, 8, 2, 0, 0, 0)  # a row more than there is
    taller = plain[:8] + chunk(b"IHDR", header) + plain[33:]
    with pytest.raises(ValueError, match="there are not 65 bytes of pixels"):
        read_together([taller], "RGB", never)
    header = struct.pack(">IIBBBBB", 4, 3, 8, 2, 0, 0, 0)  # a row less
    with pytest.raises(ValueError, match="there are not 39 bytes of pixels"):
        read_together([plain[:8] + chunk(b"IHDR", header) + plain[33:]], "RGB", never)
