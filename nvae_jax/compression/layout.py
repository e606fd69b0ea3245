"""What is where in a file: the images and the checks of every stream."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from nvae_jax.compression import tiles
from nvae_jax.compression.bit_depth import least_bits, model_bits, possible_low_bits
from nvae_jax.compression.checks import check_runs
from nvae_jax.compression.container import Container, Stream
from nvae_jax.compression.header import Shapes
from nvae_jax.errors import require
from nvae_jax.model import VAEConfig

# Bits by which images may cost less than `least_bits`. Their latents q(z | x) cost log q - log p, a
# negative number of bits with probability 2 to that number at most.
SLACK = 256


@dataclasses.dataclass(frozen=True)
class Part:
    """A stream of a file, and what belongs to it.

    Attributes:
      stream: the stream.
      first: number of its first image in the file.
      shapes: of its images.
      runs: of its images that share a check.
      check_words: (runs,) uint32.
    """

    stream: Stream
    first: int
    shapes: Shapes
    runs: list[slice]
    check_words: np.ndarray


def parts(packed: Container, config: VAEConfig) -> Iterator[Part]:
    """The streams of a file that a model has written, one after the other."""
    bits = (model_bits(config) + packed.coding.low_bits) * config.image_shape[-1]
    first = first_check = 0
    for stream in packed.streams:
        shapes = packed.shapes[first : first + stream.images]
        runs = check_runs(shapes, bits)
        words = packed.check_words[first_check : first_check + len(runs)]
        yield Part(stream, first, shapes, runs, words)
        first, first_check = first + stream.images, first_check + len(runs)


def check_layout(packed: Container, config: VAEConfig, field: str) -> None:
    """Checks that a model can have written a file.

    Args:
      packed: the file.
      config: the model's configuration.
      field: what to call the file in messages.

    Raises:
      ConfigError: it cannot; the message says why.
    """
    coding, (height, width, _) = packed.coding, config.image.inner_shape
    latents = [shape[-1] for shape in config.latent_shapes]
    coded = [len(group) for group in coding.levels]
    require(f"the latent channels of {field}", coded, coded == latents, f"the model's, {latents}")
    low = possible_low_bits(config)
    allowed = " or ".join(map(str, low))
    require(f"the low bits of {field}", coding.low_bits, coding.low_bits in low, allowed)
    checks = 0
    for number, part in enumerate(parts(packed, config)):
        stream = part.stream
        count = sum(tiles.number(shape, (height, width)) for shape in part.shapes)
        opening = f"the opening of stream {number} of {field}"
        require(opening, stream.opening, stream.opening <= count, f"up to {count} tiles")
        pixels = sum(h * w for h, w in part.shapes) - stream.opening * height * width
        least = 0.0  # on an empty stack, zeros cost nothing
        if stream.opening:
            least = 8 * stream.opening_bytes + max(pixels, 0) * least_bits(config, coding.low_bits)
        bits = 32 * len(stream.words)
        allowed = f"{least:.0f} or more, for its images"
        require(f"the bits of stream {number} of {field}", bits, least <= bits + SLACK, allowed)
        checks += len(part.runs)
    found = len(packed.check_words)
    require(f"the check words of {field}", found, found == checks, f"{checks}, for its images")
