"""The images that open a stream, coded without the model: bits back has to draw from something.

A predictor (MED of LOCO-I, Weinberger et al., 2000), differences between the channels, and a
general-purpose compressor of the standard library. Their bytes are what the first latents are drawn
from, and come back at the end of decoding.
"""

from __future__ import annotations

import lzma
import zlib

import numpy as np

from nvae_jax.compression.coder import MismatchError

_LZMA = [{"id": lzma.FILTER_LZMA1, "preset": 9, "lc": 0, "lp": 0, "pb": 0, "dict_size": 1 << 24}]


def compress_opening(levels: np.ndarray, num_bits: int) -> bytes:
    """Codes levels (N, h, w, C) of `num_bits` bits."""
    if num_bits == 1:
        data = np.packbits(levels.astype(bool)).tobytes()
    else:
        residual = levels.astype(np.int64) - _predicted(levels.astype(np.int64))
        residual[..., 1:] -= residual[..., :-1].copy()
        # Small residuals of either sign become small bytes.
        residual = (residual + (1 << num_bits - 1)) % (1 << num_bits) - (1 << num_bits - 1)
        data = np.where(residual < 0, -2 * residual - 1, 2 * residual).astype(np.uint8).tobytes()
    candidates = [b"\0" + lzma.compress(data, lzma.FORMAT_RAW, filters=_LZMA)]
    for number, strategy in ((1, zlib.Z_DEFAULT_STRATEGY), (2, zlib.Z_HUFFMAN_ONLY)):
        deflate = zlib.compressobj(9, wbits=-15, memLevel=9, strategy=strategy)
        candidates.append(bytes([number]) + deflate.compress(data) + deflate.flush())
    return min(candidates, key=len)


def decompress_opening(content: bytes, shape: tuple[int, ...], num_bits: int) -> np.ndarray:
    """The levels (N, h, w, C) that `compress_opening` was given, as uint8.

    Raises:
      MismatchError: they are of another shape.
    """
    size = int(np.prod(shape))
    stored = -(-size // 8) if num_bits == 1 else size
    try:
        if content[:1] == b"\0":
            decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_LZMA)
            data = decoder.decompress(content[1:], max_length=stored + 1)
        else:
            data = zlib.decompressobj(wbits=-15).decompress(content[1:], stored + 1)
    except (zlib.error, lzma.LZMAError, EOFError) as error:
        raise MismatchError(f"the opening is damaged: {error}") from error
    if len(data) != stored:
        raise MismatchError("the opening has another length")
    stream = np.frombuffer(data, np.uint8)
    if num_bits == 1:
        return np.unpackbits(stream, count=size).reshape(shape)
    codes = stream.astype(np.int64).reshape(shape)
    residual = np.cumsum(np.where(codes & 1, -(codes + 1) // 2, codes // 2), axis=-1)
    return _undo_prediction(residual, num_bits).astype(np.uint8)


def _med(left: np.ndarray, above: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """The median of the neighbours left and above, and of the plane through all three."""
    low, high = np.minimum(left, above), np.maximum(left, above)
    return np.clip(left + above - corner, low, high)


def _predicted(levels: np.ndarray) -> np.ndarray:
    """Every pixel's prediction (N, h, w, C) from pixels before it; beyond the edge they are 0."""
    padded = np.pad(levels, ((0, 0), (1, 0), (1, 0), (0, 0)))
    # The first row has only left neighbours, the first column only those above.
    predicted = _med(padded[:, 1:, :-1], padded[:, :-1, 1:], padded[:, :-1, :-1])
    predicted[:, 0, 1:] = levels[:, 0, :-1]
    predicted[:, 1:, 0] = levels[:, :-1, 0]
    return predicted


def _undo_prediction(residual: np.ndarray, num_bits: int) -> np.ndarray:
    levels = np.zeros_like(residual)
    _, height, width, _ = residual.shape
    for y in range(height):
        for x in range(width):
            if y and x:
                predicted = _med(levels[:, y, x - 1], levels[:, y - 1, x], levels[:, y - 1, x - 1])
            elif x:
                predicted = levels[:, y, x - 1]
            elif y:
                predicted = levels[:, y - 1, x]
            else:
                predicted = np.zeros_like(levels[:, 0, 0])
            levels[:, y, x] = (residual[:, y, x] + predicted) % (1 << num_bits)
    return levels
