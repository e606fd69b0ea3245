"""A stream: tiles that are coded one batch after the other on one stack."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np

from nvae_jax.compression.batch import BatchCoder
from nvae_jax.compression.coder import SPARE_BITS, ExhaustedError, MismatchError, Stack
from nvae_jax.compression.container import Stream
from nvae_jax.compression.latents import choose_precisions
from nvae_jax.compression.layout import SLACK
from nvae_jax.compression.network import Network
from nvae_jax.compression.opening import compress_opening, decompress_opening
from nvae_jax.compression.tiles import masks

_PROBES = 32  # tiles that the precisions are chosen by


def best_precisions(
    network: Network, tiles: np.ndarray, length: float, seed: int = 0
) -> list[np.ndarray]:
    """The precisions (Z,) of each group with which a stream of tiles becomes shortest.

    Args:
      network: the model.
      tiles: (N, h, w, C) levels that the model codes, some of the stream.
      length: tiles of the stream.
      seed: of the posterior draws that are looked at.
    """
    rng = np.random.default_rng(seed)
    number = min(len(tiles), max(_PROBES, network.batch_size))
    places = np.linspace(0, len(tiles) - 1, number).round().astype(int)
    sums = [np.zeros(shape[-1]) for shape in network.config.latent_shapes]
    for first in range(0, number, network.batch_size):
        some = tiles[places[first : first + network.batch_size]]
        missing = network.batch_size - len(some)
        levels = np.concatenate([some, np.repeat(some[:1], missing, axis=0)])
        h, prior = network.start()
        for g, tap in enumerate(network.taps(levels)):
            posterior = network.posterior(g, h, tap, prior)
            ratio = prior.sigma[: len(some)].astype(np.float64) / posterior.sigma[: len(some)]
            sums[g] += (ratio**2 - 1).mean((1, 2)).sum(0)
            z = posterior.mean + posterior.sigma * rng.normal(size=posterior.mean.shape)
            z = z.astype(np.float32)
            for shift in network.flow_cells(g):
                z = z - shift(z)
            if g + 1 < len(sums):
                h, prior = network.advance(g, h, z)
    cells = len(network.flow_cells(0))
    return [choose_precisions(total / number, length, network.batch_size, cells) for total in sums]


def encode_stream(
    coder: BatchCoder,
    images: int,
    tiles: np.ndarray,
    sizes: np.ndarray,
    num_bits: int,
    done: Callable[[int], None],
    by_model: bool = False,
) -> tuple[Stream, Counter[str]]:
    """Codes tiles on one stack, which begins with the bytes of an opening.

    Args:
      coder: of batches.
      images: that the tiles are of.
      tiles: (N, h, w, C) uint8.
      sizes: (N, 2), the rows and columns that are coded of them.
      num_bits: of the tiles' levels.
      done: is told how many tiles are done.
      by_model: whether all but the opening is by the model even where the simple codec is better.

    Returns: the stream, and where its bits went.
    """
    number = len(tiles)
    sample = tiles[-64:]
    simple_bytes = len(compress_opening(sample, num_bits)) / len(sample)  # of a tile, about
    opening = 0
    if coder.entropy:
        needed = min(coder.batch_size, number) * coder.entropy + SPARE_BITS
        opening = math.ceil(needed / (8 * simple_bytes))
    while opening < number:
        content = compress_opening(tiles[number - opening :], num_bits) if opening else b""
        coder.ledger.clear()
        stack = Stack(_words(content), seal=True)
        started = stack.bits
        try:
            for first in reversed(range(0, number - opening, coder.batch_size)):
                batch = slice(first, min(first + coder.batch_size, number - opening))
                coder.encode(stack, tiles[batch], masks(sizes[batch], coder.tile_shape[:2]))
                done(number - first)
        except ExhaustedError:
            opening = max(opening + coder.batch_size, math.ceil(1.1 * opening))
            continue
        words = stack.words()
        ledger = Counter(coder.ledger)
        ledger["opening"] = started
        ledger["word boundary"] = 32 * len(words) - stack.bits
        # Where it is close, or a stream is short, the simple codec may be better.
        clear = 4 * len(words) < 0.8 * simple_bytes * number
        if by_model or clear or 4 * len(words) <= len(compress_opening(tiles, num_bits)):
            return Stream(images, opening, len(content), words), ledger
        break
    content = compress_opening(tiles, num_bits)
    words = Stack(_words(content), seal=True).words()
    done(number)
    return Stream(images, number, len(content), words), Counter(opening=32 * len(words))


def decode_stream(
    coder: BatchCoder, stream: Stream, sizes: np.ndarray, num_bits: int
) -> Iterator[np.ndarray]:
    """The tiles (h, w, C) of a stream, in their order; what was not coded of them is arbitrary.

    Args:
      coder: of batches.
      stream: the stream.
      sizes: (N, 2), the rows and columns that are coded of its tiles.
      num_bits: of the tiles' levels.

    Raises:
      MismatchError: the bits or the network's numbers are not those of the encoder.
    """
    number = len(sizes) - stream.opening
    stack = Stack(stream.words)
    pixels = sizes[:number].astype(np.int64).prod(1)
    left = np.cumsum(pixels[::-1])[::-1] * coder.least_bits + 8 * stream.opening_bytes
    left *= stream.opening > 0  # on an empty stack, zeros cost nothing
    for first in range(0, number, coder.batch_size):
        # Other numbers than the encoder's would go on to the last tile of the largest image.
        if not left[first] - SLACK <= stack.bits <= 32 * len(stream.words) + SLACK:
            raise MismatchError("the stack is not as high as it was")
        batch = slice(first, min(first + coder.batch_size, number))
        yield from coder.decode(stack, masks(sizes[batch], coder.tile_shape[:2]))
    words = stack.words(unseal=True)
    content = words.astype("<u4").tobytes()
    if len(words) != -(-stream.opening_bytes // 4):
        raise MismatchError("the bits at the end are not those that the stream began with")
    if stream.opening:
        shape = (stream.opening, *coder.tile_shape)
        yield from decompress_opening(content[: stream.opening_bytes], shape, num_bits)


def _words(content: bytes) -> np.ndarray:
    padded = content + bytes(-len(content) % 4)
    return np.frombuffer(padded, "<u4").astype(np.uint32)
