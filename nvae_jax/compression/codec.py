"""Images to a file's content and back: what the modes `compress` and `decompress` do."""

from __future__ import annotations

import bisect
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np

from nvae_jax.compression import container, layout, tiles
from nvae_jax.compression.batch import BatchCoder
from nvae_jax.compression.bit_depth import check_images, image_of, levels_of, model_bits
from nvae_jax.compression.checks import check_runs, check_word
from nvae_jax.compression.coder import MismatchError
from nvae_jax.compression.container import Container
from nvae_jax.compression.header import LARGEST_BATCH, Coding, check_index
from nvae_jax.compression.network import Network
from nvae_jax.compression.origin import differences, made_with, network_of
from nvae_jax.compression.spent import Spent
from nvae_jax.compression.stream import best_precisions, decode_stream, encode_stream
from nvae_jax.errors import ConfigError, require
from nvae_jax.evaluation.trained import TrainedModel

Done = Callable[[int, int], None]  # is told how many tiles of how many are done


@dataclasses.dataclass(frozen=True)
class Compressed:
    """A file's content, and where its bits went.

    Attributes:
      content: of the file.
      bits: by what they are; they sum to 8 · len(content).
      tiles: how many there are in all.
      opening: how many of them the simple codec has coded.
      spent: the time that it took.
    """

    content: bytes
    bits: Counter[str]
    tiles: int
    opening: int
    spent: Spent


def compress(
    model: TrainedModel,
    images: Sequence[np.ndarray],
    names: Sequence[str] | None = None,
    batch_size: int = 1,
    stream_images: int | None = None,
    done: Done = lambda number, of: None,
    by_model: bool = False,
) -> Compressed:
    """Compresses images without loss.

    Args:
      model: the model.
      images: (H, W, C) uint8 each, of any size, with the model's channels; 0 and 255 alone where
        the model's images are binary.
      names: of the images, see `names`; their numbers, by default.
      batch_size: images or tiles that the network works on at a time. A stream begins with as many
        bits of simply coded images as a batch's latents have.
      stream_images: images in a stream, which can be decoded without the others; None: all.
      done: is told how far the work is.
      by_model: whether a stream is coded by the model even where the simple codec of its opening
        would make it shorter, to measure the model.

    Raises:
      ConfigError: an image is not what the model can code, the model cannot be coded with, or there
        are too many images for a file or a stream.
    """
    require("batch_size", batch_size, 1 <= batch_size <= LARGEST_BATCH, f"1 to {LARGEST_BATCH}")
    whole = stream_images is None or stream_images >= 1
    require("stream_images", stream_images, whole, "1 or more")
    check_images(model.config, images)
    names = [f"image:0-{len(images) - 1}"] if names is None else names
    shapes = [image.shape[:2] for image in images]
    length = min(stream_images or len(images), len(images))
    starts = range(0, len(images), length)
    check_index(names, shapes, np.diff([*starts, len(images)]).tolist())
    network = Network(model, batch_size)
    made = made_with(model, network)  # which compiles all that is needed
    spent = Spent()
    network.spent = spent.network
    with spent.total.counted():
        levels, low_bits = levels_of(model.config, images)
        bits = model_bits(model.config) + low_bits
        tile = model.config.image.inner_shape[:2]
        total = sum(tiles.number(shape, tile) for shape in shapes)
        sample = _some_tiles(levels, tile) >> low_bits
        precisions = best_precisions(network, sample, total * length / len(images))
        coder = BatchCoder(network, precisions, low_bits, spent.coder)
        streams, check_words, ledger, before = [], [], Counter[str](), 0
        for first in starts:
            part, of_part = levels[first : first + length], shapes[first : first + length]
            sizes = tiles.sizes(of_part, tile)

            def progress(number: int, before: int = before) -> None:
                done(before + number, total)

            parts = np.concatenate([tiles.split(image, tile) for image in part])
            try:
                stream, stream_ledger = encode_stream(
                    coder, len(part), parts, sizes, bits, progress, by_model
                )
            except (MismatchError, FloatingPointError) as error:
                raise ConfigError(
                    f"images {first} to {first + len(part) - 1} cannot be coded ({error}); "
                    "allowed: images at which the model's numbers are finite"
                ) from error
            before += len(sizes)
            streams.append(stream)
            ledger.update(stream_ledger)
            runs = check_runs(of_part, bits * coder.tile_shape[-1])
            check_words += [check_word(part[run]) for run in runs]
        content = container.write(
            Container(
                made_with=made,
                coding=Coding.of(batch_size, low_bits, precisions),
                names=names,
                shapes=shapes,
                check_words=np.asarray(check_words, np.uint32),
                streams=streams,
            )
        )
    ledger["checks"] = 32 * len(check_words)
    ledger["header"] = (
        8 * len(content) - ledger["checks"] - sum(32 * len(stream.words) for stream in streams)
    )
    opening = sum(stream.opening for stream in streams)
    return Compressed(content, ledger, total, opening, spent)


def decompress(
    model: TrainedModel,
    content: bytes,
    chosen: Sequence[int] | None = None,
    field: str = "the file",
    done: Done = lambda number, of: None,
    spent: Spent | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Decompresses images; each is yielded only after its check.

    Args:
      model: the model that they were compressed with.
      content: of the file.
      chosen: numbers of the images to yield, from 0; only as much as they need is decoded. None:
        all.
      field: what to call the file in messages.
      done: is told how far the work is.
      spent: is told the time that it takes, in which is the time of whoever iterates.

    Yields: the number of an image, and the image, (H, W, C) uint8.

    Raises:
      ConfigError: the content is damaged, of another model, or this machine computes other numbers
        than the one that compressed them.
    """
    packed = container.read(content, field)
    shapes = packed.shapes
    wanted = sorted(set(range(len(shapes)) if chosen is None else chosen))
    inside = all(0 <= number < len(shapes) for number in wanted)
    require("the images", wanted, inside, f"0 to {len(shapes) - 1}")
    network = network_of(model, packed, field)
    spent = spent or Spent()
    network.spent = spent.network
    coding, scrambled = packed.coding, packed.version > 1
    coder = BatchCoder(network, coding.precisions, coding.low_bits, spent.coder, scrambled)
    bits = model_bits(model.config) + coding.low_bits
    total = sum(tiles.number(shape, coder.tile_shape[:2]) for shape in shapes)
    decoded = 0
    with spent.total.counted():
        for part in layout.parts(packed, model.config):
            number, behind = part.first, part.first + part.stream.images
            begin, end = (bisect.bisect_left(wanted, n) for n in (number, behind))
            here = set(wanted[begin:end])
            last = max(here, default=-1)
            source = _images(coder, part, bits)
            while number <= last:
                try:
                    images = next(source)
                except (MismatchError, FloatingPointError) as error:
                    raise ConfigError(
                        f"image {number} of {field} and those after it cannot be decoded here "
                        f"({error}); allowed: what it was made with"
                        f"{differences(model, network, packed)}"
                    ) from error
                for image in images:
                    if number in here:
                        yield number, image_of(model.config, image, coding.low_bits)
                    decoded += tiles.number(image.shape[:2], coder.tile_shape[:2])
                    number += 1
                done(decoded, total)


def _images(coder: BatchCoder, part: layout.Part, bits: int) -> Iterator[list[np.ndarray]]:
    """The levels (H, W, C) of a stream's images, a checked run at a time."""
    tile = coder.tile_shape[:2]
    decoded = decode_stream(coder, part.stream, tiles.sizes(part.shapes, tile), bits)
    for run, word in zip(part.runs, part.check_words, strict=True):
        images = [
            tiles.join(np.stack([*islice(decoded, tiles.number(shape, tile))]), *shape)
            for shape in part.shapes[run]
        ]
        if check_word(images) != word:
            raise MismatchError("a check failed")
        yield images


def _some_tiles(images: Sequence[np.ndarray], tile: tuple[int, int]) -> np.ndarray:
    places = np.unique(np.linspace(0, len(images) - 1, 64).round().astype(int))
    return np.concatenate([tiles.split(images[i], tile)[:64] for i in places])
