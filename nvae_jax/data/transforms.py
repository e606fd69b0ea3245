"""From uint8 levels to the pixels a model sees: pointwise, jit-able, meant to run on the device.

All randomness is per example: a draw depends on the example's index (and the epoch), never on the
batch it comes in, the device it is on, or who read it. Pixels are float32 in [0, 1].
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

_Levels = TypeVar("_Levels", np.ndarray, jax.Array)

_EVALUATION_SEED = 0


def reduce_bits(levels: _Levels, num_bits: int) -> _Levels:
    """Keeps the `num_bits` highest bits of 8-bit levels.

    Args:
      levels: uint8, any shape, NumPy or JAX.
      num_bits: bits per channel, from 1 to 8.

    Returns:
      uint8 of the same shape, from 0 to 2**num_bits - 1.

    Raises:
      ValueError: `num_bits` is not from 1 to 8.
    """
    if not 1 <= num_bits <= 8:
        raise ValueError(f"num_bits is {num_bits}; allowed: 1 to 8")
    return levels >> (8 - num_bits)


def prepare_train(
    image: jax.Array,
    index: jax.Array,
    epoch: jax.Array,
    *,
    seed_key: jax.Array,
    binarize: bool,
    flip: bool,
    num_bits: int,
) -> jax.Array:
    """Training pixels, with flips and binarisation drawn anew in every epoch.

    Args:
      image: (B, H, W, C) uint8, levels 0-255.
      index: (B,) int32, the examples' positions in their split.
      epoch: (B,) int32.
      seed_key: a threefry key, JAX's default kind ("rbg" keys do not act per example under vmap).
        The draws' key is fold_in(fold_in(seed_key, epoch), index).
      binarize: draw each pixel from a Bernoulli whose mean is its grey level / 255.
      flip: mirror each image left to right with probability 1/2.
      num_bits: bits per channel, from 1 to 8; grey levels to binarise are not reduced.

    Returns:
      (B, H, W, C) float32 in [0, 1]: 0 or 1 where `binarize`, else multiples of
      1 / (2**num_bits - 1). A level of 0 stays 0.

    Raises:
      ValueError: `num_bits` is not from 1 to 8.
    """

    def example_keys(epoch: jax.Array, index: jax.Array) -> jax.Array:
        return jax.random.split(jax.random.fold_in(jax.random.fold_in(seed_key, epoch), index))

    flip_key, binarize_key = jnp.moveaxis(jax.vmap(example_keys)(epoch, index), 1, 0)
    if flip:
        mirror = jax.vmap(jax.random.bernoulli)(flip_key)
        image = jnp.where(mirror[:, None, None, None], image[:, :, ::-1], image)
    return _binarize(image, binarize_key) if binarize else _to_unit_interval(image, num_bits)


def prepare_eval(image: jax.Array, index: jax.Array, *, binarize: bool, num_bits: int) -> jax.Array:
    """Evaluation pixels: no flips, and binarised once and for all.

    Args:
      image: (B, H, W, C) uint8, levels 0-255.
      index: (B,) int32, the examples' positions in their split; with a fixed seed it alone
        decides the binarisation, which is so the same in every run and on every platform.
      binarize: draw each pixel from a Bernoulli whose mean is its grey level / 255.
      num_bits: bits per channel, from 1 to 8; grey levels to binarise are not reduced.

    Returns:
      (B, H, W, C) float32 in [0, 1], as `prepare_train`'s.

    Raises:
      ValueError: `num_bits` is not from 1 to 8.
    """
    if not binarize:
        return _to_unit_interval(image, num_bits)
    seed_key = jax.random.key(_EVALUATION_SEED, impl="threefry2x32")
    return _binarize(image, jax.vmap(jax.random.fold_in, (None, 0))(seed_key, index))


def _to_unit_interval(image: jax.Array, num_bits: int) -> jax.Array:
    # Shifted as integers: in floats, a level at the edge of a bin may round into its neighbour.
    return reduce_bits(image, num_bits).astype(jnp.float32) / (2**num_bits - 1)


def _binarize(image: jax.Array, keys: jax.Array) -> jax.Array:
    """Bernoulli draws with means image / 255; (B, H, W, C), one key per example, (B,)."""
    draw = jax.vmap(jax.random.bernoulli)(keys, _to_unit_interval(image, 8))
    return draw.astype(jnp.float32)
