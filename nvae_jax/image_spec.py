"""What an image is to a model: its shape, border, bits and binarisation, and how it becomes pixels.

Images are stored as uint8 levels, 0-255. Pixels, which a model sees, are float32 in [0, 1]. The
functions from levels to pixels are pointwise (but for flips) and can be compiled, to run on the
devices. All randomness is per example: a draw depends on the example's index (and the epoch), never
on its batch, its device or its reader.
"""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from nvae_jax.errors import require

_Images = TypeVar("_Images", np.ndarray, Array)

_EVALUATION_SEED = 0


LARGEST_SIDE = 2**14  # pixels, far beyond any machine


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """The images that a model is trained on.

    Attributes:
      height: H in pixels, border included.
      width: W in pixels, border included.
      channels: C, such as 1 for grey levels and 3 for colours.
      border: pixels of zero padding on each side, which the likelihood leaves out.
      num_bits: bits per channel that are kept, from 1 to 8. Binarised images ignore it.
      binarize: whether pixels are Bernoulli draws whose means are the grey levels.

    Raises:
      ConfigError: a value is impossible.
    """

    height: int
    width: int
    channels: int
    border: int = 0
    num_bits: int = 8
    binarize: bool = False

    def __post_init__(self):
        sides = min(self.height, self.width) > 0 and max(self.height, self.width) <= LARGEST_SIDE
        require("image_shape", self.shape, sides, f"sides of 1 to {LARGEST_SIDE} pixels")
        require("image_shape", self.shape, 1 <= self.channels <= 1024, "1 to 1024 channels")
        side = min(self.height, self.width)
        fits = 0 <= 2 * self.border < side
        require("border", self.border, fits, f"0 or more, and less than half of {side} pixels")
        require("num_bits", self.num_bits, 1 <= self.num_bits <= 8, "1 to 8")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C), border included."""
        return self.height, self.width, self.channels

    @property
    def inner_shape(self) -> tuple[int, int, int]:
        """(h, w, C), without the border."""
        return self.height - 2 * self.border, self.width - 2 * self.border, self.channels

    @property
    def num_dimensions(self) -> int:
        """Values per image that the likelihood scores: the unit of bits per dimension."""
        height, width, channels = self.inner_shape
        return height * width * channels

    def reduce_bits(self, levels: _Images) -> _Images:
        """Keeps the highest `num_bits` of uint8 levels, as uint8 from 0 to 2**num_bits - 1."""
        return levels >> (8 - self.num_bits)

    def training_pixels(
        self, image: Array, index: Array, epoch: Array, *, seed_key: Array, flip: bool
    ) -> Array:
        """Training pixels, with flips and binarisation drawn anew in every epoch.

        Args:
          image: (B, H, W, C) uint8, levels 0-255.
          index: (B,) int32, the examples' positions in their split.
          epoch: (B,) int32.
          seed_key: a threefry key, JAX's default kind ("rbg" keys do not act per example under
            vmap). The key of an example's draws is fold_in(fold_in(seed_key, epoch), index).
          flip: whether each image is mirrored left to right with probability 1/2.

        Returns:
          (B, H, W, C) float32 in [0, 1]: 0 or 1 where images are binarised, else multiples of
          1 / (2**num_bits - 1). A level of 0 stays 0.
        """

        def example_keys(epoch: Array, index: Array) -> Array:
            return jax.random.split(jax.random.fold_in(jax.random.fold_in(seed_key, epoch), index))

        flip_key, binarize_key = jnp.moveaxis(jax.vmap(example_keys)(epoch, index), 1, 0)
        if flip:
            image = mirrored_at_random(image, flip_key)
        return _binarized(image, binarize_key) if self.binarize else self._scaled(image)

    def evaluation_pixels(self, image: Array, index: Array) -> Array:
        """Evaluation pixels: no flips, and the same binarisation at every call.

        Args:
          image: (B, H, W, C) uint8, levels 0-255.
          index: (B,) int32, the examples' positions in their split; with a fixed seed it alone
            decides the binarisation, on every platform.

        Returns:
          (B, H, W, C) float32 in [0, 1], see `training_pixels`.
        """
        if not self.binarize:
            return self._scaled(image)
        seed_key = jax.random.key(_EVALUATION_SEED, impl="threefry2x32")
        return _binarized(image, jax.vmap(jax.random.fold_in, (None, 0))(seed_key, index))

    def without_border(self, images: _Images) -> _Images:
        """Crops the border: (B, H, W, …) → (B, h, w, …)."""
        border = self.border
        height, width = images.shape[1:3]
        return images[:, border : height - border, border : width - border]

    def with_border(self, images: _Images) -> _Images:
        """Pads with the border's zeros: (B, h, w, C) → (B, H, W, C)."""
        border = self.border
        padding = ((0, 0), (border, border), (border, border), (0, 0))
        return (np if isinstance(images, np.ndarray) else jnp).pad(images, padding)

    def _scaled(self, image: Array) -> Array:
        # Shifted as integers: in floats, a level at the edge of a bin may round into its neighbour.
        return self.reduce_bits(image).astype(jnp.float32) / (2**self.num_bits - 1)


def mirrored_at_random(images: Array, keys: Array) -> Array:
    """Mirrors each image (B, H, W, C) left to right with probability 1/2, by its own key (B,)."""
    mirror = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(mirror[:, None, None, None], images[:, :, ::-1], images)


def _binarized(image: Array, keys: Array) -> Array:
    """Bernoulli draws with means image / 255; (B, H, W, C), one key per example, (B,)."""
    draw = jax.vmap(jax.random.bernoulli)(keys, image.astype(jnp.float32) / 255)
    return draw.astype(jnp.float32)
