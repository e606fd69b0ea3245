"""A fixed space of features for images of any kind: an untrained convolutional network.

Distances of distributions in it order models of the same data, need no weights from elsewhere, and
are comparable with nothing else.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

WIDTHS = (32, 64, 128, 256)
_SEED = 0


def random_features(images: np.ndarray, batch_size: int = 256) -> np.ndarray:
    """Features (N, 256) of images (N, h, w, C) in [0, 1].

    Strided 3×3 convolutions with ReLU, their weights drawn once for all as He et al. (2015) do, and
    the mean over what is left of the image.
    """
    kernels = _kernels(images.shape[-1])
    parts = [
        np.asarray(_features(jnp.asarray(images[i : i + batch_size]), kernels))
        for i in range(0, len(images), batch_size)
    ]
    return np.concatenate(parts)


def _kernels(channels: int) -> list[np.ndarray]:
    rng = np.random.default_rng(_SEED)
    shapes = [(3, 3, a, b) for a, b in zip((channels, *WIDTHS), WIDTHS, strict=False)]
    scales = [(2 / np.prod(shape[:3])) ** 0.5 for shape in shapes]
    draws = [rng.normal(0, s, shape) for s, shape in zip(scales, shapes, strict=True)]
    return [draw.astype(np.float32) for draw in draws]


@jax.jit
def _features(x: Array, kernels: list[Array]) -> Array:
    x = 2 * x - 1
    for kernel in kernels:
        x = lax.conv_general_dilated(
            x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x)
    return x.mean((1, 2))
