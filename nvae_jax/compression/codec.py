"""Images to a file's content and back: what the modes `compress` and `decompress` do."""

from __future__ import annotations

import dataclasses
import math
import platform
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import jax
import jaxlib
import numpy as np

from nvae_jax.compression import container, tiles
from nvae_jax.compression.batch import BatchCoder
from nvae_jax.compression.coder import MismatchError, library
from nvae_jax.compression.container import Container, Stream
from nvae_jax.compression.network import Network, levels_bits, model_hash
from nvae_jax.compression.stream import decode_stream, encode_stream, sensible_levels
from nvae_jax.errors import ConfigError, require
from nvae_jax.evaluation.trained import TrainedModel
from nvae_jax.image_spec import LARGEST_SIDE
from nvae_jax.model import VAEConfig

CHECKED_BYTES = 1024  # images below this size, as they are stored raw, share a check
LARGEST_BATCH = 1024

Done = Callable[[int, int], None]  # is told how many tiles of how many are done


@dataclasses.dataclass(frozen=True)
class Compressed:
    """A file's content, and where its bits went.

    Attributes:
      content: of the file.
      bits: by what they are; they sum to 8 · len(content).
      tiles: how many there are in all.
      opening: how many of them the simple codec has coded.
      seconds: in all, without compiling.
      network_seconds: of these, in the network.
    """

    content: bytes
    bits: Counter[str]
    tiles: int
    opening: int
    seconds: float
    network_seconds: float


def compress(
    model: TrainedModel,
    images: Sequence[np.ndarray],
    names: Sequence[str] | None = None,
    batch_size: int = 1,
    stream_images: int | None = None,
    done: Done = lambda number, of: None,
) -> Compressed:
    """Compresses images without loss.

    Args:
      model: the model.
      images: (H, W, C) uint8 each, of any size, with the model's channels; 0 and 255 alone where
        the model's images are binary.
      names: of the images, see `images.expanded`; their numbers, by default.
      batch_size: images or tiles that the network works on at a time. A stream begins with as many
        bits of simply coded images as a batch's latents have.
      stream_images: images in a stream, which can be decoded without the others; None: all.
      done: is told how far the work is.

    Raises:
      ConfigError: an image is not what the model can code, or the model cannot be coded with.
    """
    require("batch_size", batch_size, 1 <= batch_size <= LARGEST_BATCH, f"1 to {LARGEST_BATCH}")
    whole = stream_images is None or stream_images >= 1
    require("stream_images", stream_images, whole, "1 or more")
    _check_images(model.config, images)
    network = Network(model, batch_size)
    made_with = _made_with(model, network)  # which compiles all that is needed
    started, network.seconds = time.monotonic(), 0.0
    bits = levels_bits(model.config)
    images = [image >> 7 for image in images] if _is_binary(model.config) else images
    low_bits = 0 if _is_binary(model.config) else 8 - bits
    if low_bits and not any((image & ((1 << low_bits) - 1)).any() for image in images):
        images, low_bits = [image >> low_bits for image in images], 0

    tile = model.config.image.inner_shape[:2]
    total = sum(len(tiles.grid(image.shape[:2], tile)) for image in images)
    in_stream = total * min(stream_images or len(images), len(images)) / len(images)
    levels = sensible_levels(network, _some_tiles(images, tile) >> low_bits, in_stream)
    coder = BatchCoder(network, levels, low_bits)
    streams, ledger, before = [], Counter[str](), 0
    for some in _streams(len(images), stream_images):
        parts = np.concatenate([tiles.split(image, tile) for image in images[some]])
        mask = _masks([image.shape[:2] for image in images[some]], tile)

        def progress(number: int, before: int = before) -> None:
            done(before + number, total)

        count = some.stop - some.start
        stream, part = encode_stream(coder, count, parts, mask, bits + low_bits, progress)
        before += len(mask)
        streams.append(stream)
        ledger.update(part)
    shapes = [image.shape[:2] for image in images]
    checks = [
        _check(images[run]) for run in _check_runs(shapes, model.config, bits + low_bits, streams)
    ]
    content = container.write(
        Container(
            made_with=made_with,
            coding={
                "batch_size": batch_size,
                "low_bits": low_bits,
                "levels": ["".join(f"{level + 1:x}" for level in group) for group in levels],
            },
            names=list(names) if names is not None else [f"image:0-{len(images) - 1}"],
            shapes=_runs_of_shapes(shapes),
            check_words=np.asarray(checks, np.uint32),
            streams=streams,
        )
    )
    ledger["header"] = 8 * len(content) - 32 * len(checks) - sum(32 * len(s.words) for s in streams)
    ledger["checks"] = 32 * len(checks)
    opening = sum(stream.opening for stream in streams)
    seconds = time.monotonic() - started
    return Compressed(content, ledger, total, opening, seconds, network.seconds)


def decompress(
    model: TrainedModel,
    content: bytes,
    chosen: Sequence[int] | None = None,
    field: str = "the file",
    done: Done = lambda number, of: None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Decompresses images; each is yielded only after its check.

    Args:
      model: the model that they were compressed with.
      content: of the file.
      chosen: numbers of the images to yield, from 0; only as much as they need is decoded. None:
        all.
      field: what to call the file in messages.
      done: is told how far the work is.

    Yields: the number of an image, and the image, (H, W, C) uint8.

    Raises:
      ConfigError: the content is damaged, of another model, or this machine computes other numbers
        than the one that compressed them.
    """
    packed = container.read(content, field)
    shapes = packed.image_shapes
    wanted = set(range(len(shapes)) if chosen is None else chosen)
    inside = all(0 <= number < len(shapes) for number in wanted)
    require("the images", sorted(wanted), inside, f"0 to {len(shapes) - 1}")
    network = _network(model, packed, field)
    levels = [np.asarray([int(c, 16) - 1 for c in group]) for group in packed.coding["levels"]]
    low_bits = packed.coding["low_bits"]
    bits = levels_bits(model.config) + low_bits
    coder = BatchCoder(network, levels, low_bits)
    tile = model.config.image.inner_shape[:2]
    runs = _check_runs(shapes, model.config, bits, packed.streams)
    first = before = 0
    total = sum(len(tiles.grid(shape, tile)) for shape in shapes)
    for stream in packed.streams:
        of_stream = shapes[first : first + stream.images]
        mask = _masks(of_stream, tile)
        last = max((n - first for n in wanted if first <= n < first + stream.images), default=-1)
        if last >= 0:
            source = decode_stream(coder, stream, mask, bits)
            try:
                for number, run in enumerate(runs):
                    if not first <= run.start <= first + last:
                        continue
                    some = []
                    for shape in shapes[run]:
                        count = len(tiles.grid(shape, tile))
                        some.append(tiles.join(np.stack([*islice(source, count)]), *shape))
                        before += count
                    done(before, total)
                    if _check(some) != packed.check_words[number]:
                        raise MismatchError("a check failed")
                    for i, image in enumerate(some, run.start):
                        if i in wanted:
                            yield i, _as_given(model.config, image, 8 - bits)
            except (MismatchError, FloatingPointError) as error:
                differences = _differences(model, network, packed)
                raise ConfigError(
                    f"images {run.start} to {run.stop - 1} of {field} cannot be decoded here "
                    f"({error}); allowed: what it was made with{differences}"
                ) from error
        first += stream.images


def _network(model: TrainedModel, packed: Container, field: str) -> Network:
    """The network that a file was made with, if it is this one."""
    made = packed.made_with
    here = model_hash(model)
    require(f"the model of {field}", made["model"], made["model"] == here, f"the run's, {here}")
    network = Network(model, packed.coding["batch_size"])
    if network.fingerprint() != made["fingerprint"]:
        raise ConfigError(
            f"{field} cannot be decoded here: the network computes other numbers; allowed: what it "
            f"was made with{_differences(model, network, packed)}"
        )
    return network


def _differences(model: TrainedModel, network: Network, packed: Container) -> str:
    here = _made_with(model, network)
    differ = [
        f"{name} {value} (here {here.get(name)})"
        for name, value in packed.made_with.items()
        if name != "fingerprint" and value != here.get(name)
    ]
    return f": {', '.join(differ)}" if differ else ", of which all that is written down is the same"


def _made_with(model: TrainedModel, network: Network) -> dict[str, Any]:
    """What the numbers of a network depend on."""
    return {
        "model": model_hash(model),
        "fingerprint": network.fingerprint(),
        "dtype": model.config.dtype,
        "device": network.device.device_kind,
        "machine": platform.machine(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.version.__version__,
        "numpy": np.__version__,
        "constriction": _version_of_library(),
    }


def _version_of_library() -> str:
    from importlib.metadata import version

    return version(library().__name__)


def _check_images(config: VAEConfig, images: Sequence[np.ndarray]) -> None:
    require("images", len(images), len(images) > 0, "1 or more")
    channels = config.image_shape[-1]
    for number, image in enumerate(images):
        name = f"image {number}"
        shaped = image.ndim == 3 and image.shape[-1] == channels and image.dtype == np.uint8
        shaped = shaped and min(image.shape) > 0 and max(image.shape) <= LARGEST_SIDE
        what = (*image.shape, str(image.dtype))
        sides = f"sides of 1 to {LARGEST_SIDE} pixels and {channels} channels of uint8"
        require(name, what, shaped, sides)
        if _is_binary(config):
            levels = np.unique(image)
            allowed = "0 and 255: the model's images are binary"
            require(f"the levels of {name}", levels[:4].tolist(), set(levels) <= {0, 255}, allowed)


def _is_binary(config: VAEConfig) -> bool:
    return config.likelihood == "bernoulli"


def _as_given(config: VAEConfig, levels: np.ndarray, missing_bits: int) -> np.ndarray:
    return levels * np.uint8(255) if _is_binary(config) else levels << missing_bits


def _some_tiles(images: Sequence[np.ndarray], tile: tuple[int, int]) -> np.ndarray:
    places = np.unique(np.linspace(0, len(images) - 1, 64).round().astype(int))
    return np.concatenate([tiles.split(images[i], tile)[:64] for i in places])


def _streams(images: int, length: int | None) -> list[slice]:
    length = length or images
    return [slice(first, min(first + length, images)) for first in range(0, images, length)]


def _masks(shapes: Sequence[tuple[int, int]], tile: tuple[int, int]) -> np.ndarray:
    """What is coded of the tiles of images, (N, h, w) bool."""
    sizes = np.asarray([size for shape in shapes for size in tiles.grid(shape, tile)])
    rows, columns = (np.arange(length) for length in tile)
    return (rows[:, None] < sizes[:, 0, None, None]) & (columns < sizes[:, 1, None, None])


def _check(images: Sequence[np.ndarray]) -> int:
    check = 0
    for image in images:
        check = zlib.crc32(image.tobytes(), check)
    return check


def _check_runs(
    shapes: Sequence[tuple[int, int]], config: VAEConfig, bits: int, streams: Sequence[Stream]
) -> list[slice]:
    """Consecutive images of one stream that share a check: as many as make up CHECKED_BYTES."""
    runs, first = [], 0
    for stream in streams:
        stop, start, size = first + stream.images, first, 0.0
        for number in range(first, stop):
            size += math.prod(shapes[number]) * config.image_shape[-1] * bits / 8
            if size >= CHECKED_BYTES or number == stop - 1:
                runs.append(slice(start, number + 1))
                start, size = number + 1, 0.0
        first = stop
    return runs


def _runs_of_shapes(shapes: Sequence[tuple[int, int]]) -> list[list[int]]:
    runs: list[list[int]] = []
    for height, width in shapes:
        if runs and runs[-1][1:] == [height, width]:
            runs[-1][0] += 1
        else:
            runs.append([1, height, width])
    return runs
