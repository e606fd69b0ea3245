"""Between images of 8 bits and the levels that are coded.

A model codes the upper bits of a level, as many as it has. If any image has bits below those, they
are stored as they are; otherwise they are left out and come back as zeros. A binary model codes the
levels 0 and 255 as 0 and 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nvae_jax.compression.pixels import LEAST_BITS
from nvae_jax.errors import require
from nvae_jax.image_spec import LARGEST_SIDE
from nvae_jax.model import VAEConfig


def model_bits(config: VAEConfig) -> int:
    """Bits of a level that the model codes."""
    return 1 if _is_binary(config) else config.num_bits


def possible_low_bits(config: VAEConfig) -> tuple[int, ...]:
    """How many bits below those that the model codes images may have."""
    return (0,) if _is_binary(config) or config.num_bits == 8 else (0, 8 - config.num_bits)


def least_bits(config: VAEConfig, low_bits: int) -> float:
    """Bits that a pixel costs in a stream, at the least."""
    return config.image_shape[-1] * (model_bits(config) * LEAST_BITS + low_bits)


def check_images(config: VAEConfig, images: Sequence[np.ndarray]) -> None:
    """Checks that a model can code images.

    Raises:
      ConfigError: there are none, or one has another shape or type, or levels other than 0 and 255
        where the model's images are binary.
    """
    require("images", len(images), len(images) > 0, "1 or more")
    channels = config.image_shape[-1]
    sides = f"sides of 1 to {LARGEST_SIDE} pixels and {channels} channels of uint8"
    for number, image in enumerate(images):
        name = f"image {number}"
        shaped = image.ndim == 3 and image.shape[-1] == channels and image.dtype == np.uint8
        shaped = shaped and min(image.shape) > 0 and max(image.shape) <= LARGEST_SIDE
        require(name, (*image.shape, str(image.dtype)), shaped, sides)
        if _is_binary(config):
            found = np.unique(image)
            allowed = "0 and 255: the model's images are binary"
            require(f"the levels of {name}", found[:4].tolist(), set(found) <= {0, 255}, allowed)


def levels_of(config: VAEConfig, images: Sequence[np.ndarray]) -> tuple[list[np.ndarray], int]:
    """The levels of images, and how many bits they have below those that the model codes."""
    if _is_binary(config):
        return [image >> 7 for image in images], 0
    low_bits = 8 - config.num_bits
    if any((image & ((1 << low_bits) - 1)).any() for image in images):
        return list(images), low_bits
    return [image >> low_bits for image in images], 0


def image_of(config: VAEConfig, levels: np.ndarray, low_bits: int) -> np.ndarray:
    """The image (H, W, C) uint8 of levels, see `levels_of`."""
    if _is_binary(config):
        return levels * np.uint8(255)
    return levels << (8 - config.num_bits - low_bits)


def _is_binary(config: VAEConfig) -> bool:
    return config.likelihood == "bernoulli"
