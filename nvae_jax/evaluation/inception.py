"""Inception v3 as FID has it: the network of December 2015 up to its 2048 pooled features.

Beside the published network (Szegedy et al., 2016), padding does not count in average pooling, and
the last block pools by the maximum. Batch norm is folded into the convolutions. Names of layers are
those of torchvision and pytorch-fid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

SIZE = 299  # pixels on a side that FID scales images to
NUM_FEATURES = 2048

Kernel = int | tuple[int, int]


class Inception(nn.Module):
    """Images (B, H, W, 3) in [-1, 1], H and W at least 75 → features (B, 2048)."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Runs the network."""
        x = self._conv(x, "Conv2d_1a_3x3", 32, 3, 2)
        x = self._conv(x, "Conv2d_2a_3x3", 32, 3, padding="VALID")
        x = self._conv(x, "Conv2d_2b_3x3", 64, 3)
        x = nn.max_pool(x, (3, 3), (2, 2))
        x = self._conv(x, "Conv2d_3b_1x1", 80)
        x = self._conv(x, "Conv2d_4a_3x3", 192, 3, padding="VALID")
        x = nn.max_pool(x, (3, 3), (2, 2))
        for block, pooled in (("5b", 32), ("5c", 64), ("5d", 64)):
            x = self._block_a(x, f"Mixed_{block}", pooled)
        x = self._block_b(x, "Mixed_6a")
        for block, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            x = self._block_c(x, f"Mixed_{block}", width)
        x = self._block_d(x, "Mixed_7a")
        x = self._block_e(x, "Mixed_7b", _average)
        x = self._block_e(x, "Mixed_7c", lambda x: nn.max_pool(x, (3, 3), padding="SAME"))
        return x.mean((1, 2))

    def _conv(
        self,
        x: Array,
        name: str,
        features: int,
        kernel: Kernel = 1,
        stride: int = 1,
        padding: str | None = None,
    ) -> Array:
        size = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = padding or ("SAME" if stride == 1 else "VALID")
        return nn.relu(nn.Conv(features, size, stride, padding, name=name)(x))

    def _chain(
        self, x: Array, name: str, layers: Sequence[tuple[int, Kernel]], stride: int = 1
    ) -> Array:
        """Convolutions `name_1`, `name_2`, …; the stride is the last one's."""
        for i, (features, kernel) in enumerate(layers, 1):
            last = i == len(layers)
            x = self._conv(x, f"{name}_{i}", features, kernel, stride if last else 1)
        return x

    def _block_a(self, x: Array, name: str, pooled: int) -> Array:
        branches = (
            self._conv(x, f"{name}.branch1x1", 64),
            self._chain(x, f"{name}.branch5x5", [(48, 1), (64, 5)]),
            self._chain(x, f"{name}.branch3x3dbl", [(64, 1), (96, 3), (96, 3)]),
            self._conv(_average(x), f"{name}.branch_pool", pooled),
        )
        return jnp.concatenate(branches, axis=-1)

    def _block_b(self, x: Array, name: str) -> Array:
        branches = (
            self._conv(x, f"{name}.branch3x3", 384, 3, 2),
            self._chain(x, f"{name}.branch3x3dbl", [(64, 1), (96, 3), (96, 3)], stride=2),
            nn.max_pool(x, (3, 3), (2, 2)),
        )
        return jnp.concatenate(branches, axis=-1)

    def _block_c(self, x: Array, name: str, width: int) -> Array:
        row, column = (1, 7), (7, 1)
        twice: list[tuple[int, Kernel]] = [
            (width, 1),
            (width, column),
            (width, row),
            (width, column),
            (192, row),
        ]
        once: list[tuple[int, Kernel]] = [(width, 1), (width, row), (192, column)]
        branches = (
            self._conv(x, f"{name}.branch1x1", 192),
            self._chain(x, f"{name}.branch7x7", once),
            self._chain(x, f"{name}.branch7x7dbl", twice),
            self._conv(_average(x), f"{name}.branch_pool", 192),
        )
        return jnp.concatenate(branches, axis=-1)

    def _block_d(self, x: Array, name: str) -> Array:
        layers: list[tuple[int, Kernel]] = [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3)]
        branches = (
            self._chain(x, f"{name}.branch3x3", [(192, 1), (320, 3)], stride=2),
            self._chain(x, f"{name}.branch7x7x3", layers, stride=2),
            nn.max_pool(x, (3, 3), (2, 2)),
        )
        return jnp.concatenate(branches, axis=-1)

    def _block_e(self, x: Array, name: str, pool: Callable[[Array], Array]) -> Array:
        def split(x: Array, name: str) -> list[Array]:
            sides = (("a", (1, 3)), ("b", (3, 1)))
            return [self._conv(x, f"{name}{side}", 384, kernel) for side, kernel in sides]

        single = self._conv(x, f"{name}.branch3x3_1", 384)
        double = self._chain(x, f"{name}.branch3x3dbl", [(448, 1), (384, 3)])
        branches = (
            self._conv(x, f"{name}.branch1x1", 320),
            *split(single, f"{name}.branch3x3_2"),
            *split(double, f"{name}.branch3x3dbl_3"),
            self._conv(pool(x), f"{name}.branch_pool", 192),
        )
        return jnp.concatenate(branches, axis=-1)


def _average(x: Array) -> Array:
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def fid_inputs(images: Array) -> Array:
    """Images (B, H, W, 1 or 3) in [0, 1] as FID shows them: (B, 299, 299, 3) in [-1, 1]."""
    images = jnp.broadcast_to(images, (*images.shape[:-1], 3))
    # Without antialiasing, as FID was defined.
    size = (len(images), SIZE, SIZE, 3)
    return 2.0 * jax.image.resize(images, size, "bilinear", antialias=False) - 1.0


def fid_features(params: dict, images: Array) -> Array:
    """Features (B, 2048) of images (B, H, W, 1 or 3) in [0, 1]."""
    features: Any = Inception().apply({"params": params}, fid_inputs(images))
    return features


def feature_shapes() -> dict:
    """Shapes and dtypes of the network's parameters."""
    images = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    return jax.eval_shape(Inception().init, jax.random.key(0), images)["params"]
