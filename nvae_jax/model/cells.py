"""Residual cells and the operations inside them (NVAE, §3.1, figure 3 and appendix A)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from nvae_jax.model.convolution import Conv, uniform_fan_in
from nvae_jax.model.kernels.batch_norm import Activation
from nvae_jax.model.normalization import BatchNorm

Resize = Literal["same", "down", "up"]


def upsample_nearest(x: Array) -> Array:
    """Repeats each pixel in a 2×2 block: (B, H, W, C) → (B, 2H, 2W, C)."""
    batch, height, width, channels = x.shape
    # Stacked rather than broadcast, so that the gradient consists of additions, not of reductions:
    # XLA's CPU backend fuses additions with their users, but materialises operands of a reduction.
    x = jnp.stack([x, x], axis=3)
    x = jnp.stack([x, x], axis=2)
    return x.reshape(batch, 2 * height, 2 * width, channels)


def upsample_bilinear(x: Array) -> Array:
    """Interpolates bilinearly, with corners aligned: (B, H, W, C) → (B, 2H, 2W, C)."""
    # Sums of shifted pixels rather than products with matrices of weights: XLA fuses the sums, and
    # for GPUs it could not compile some of the products' gradients.
    return _interpolate(_interpolate(x, axis=1), axis=2)


def _interpolate(x: Array, axis: int) -> Array:
    """Doubles the n pixels of an axis; output j is at position j(n-1)/(2n-1), computed in float32.

    So output 2i is i/(2n-1) of a pixel before input i, and output 2i+1 is (n-1-i)/(2n-1) behind it.
    """
    n = x.shape[axis]
    distance = np.arange(n, dtype=np.float32) / (2 * n - 1)
    pixels = x.astype(jnp.float32)

    def towards(distance: np.ndarray, neighbor: Array) -> Array:
        distance = distance.reshape(-1, *[1] * (x.ndim - axis - 1))
        return ((1 - distance) * pixels + distance * neighbor).astype(x.dtype)

    even = towards(distance, _shifted(pixels, axis, 1))
    odd = towards(distance[::-1], _shifted(pixels, axis, -1))
    shape = (*x.shape[:axis], 2 * n, *x.shape[axis + 1 :])
    return jnp.stack([even, odd], axis + 1).reshape(shape)


def _shifted(x: Array, axis: int, places: int) -> Array:
    """Moves the pixels of an axis by some places; zeros move in."""
    widths = [(0, 0, 0)] * x.ndim
    widths[axis] = (places, -places, 0)
    return lax.pad(x, np.zeros((), x.dtype), widths)


class ResidualConv(nn.Module):
    """Batch norm, activation and a 3×3 convolution.

    Without batch norm, the convolution is initialised from the first batch instead.
    """

    features: int
    resize: Resize
    activation: Activation = nn.swish
    batch_norm: bool = True
    dilation: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """(B, H, W, C) → (B, H', W', features)."""
        if self.batch_norm:
            x = BatchNorm(self.activation, name="norm")(x, train)
        else:
            x = self.activation(x)
        if self.resize == "up":
            x = upsample_nearest(x)
        return Conv(
            self.features,
            kernel_size=3,
            stride=2 if self.resize == "down" else 1,
            dilation=self.dilation,
            data_init=not self.batch_norm,
            dtype=self.dtype,
            name="conv",
        )(x)


class InvertedResidual(nn.Module):
    """Expansion, depthwise (or grouped) convolution and projection, with batch norm around each.

    The paper upsamples first. All layers before the depthwise convolution act on single pixels, so
    upsampling immediately before that convolution gives the same result at a quarter of the cost.
    """

    features: int
    resize: Resize
    expansion: int
    kernel_size: int
    groups: int  # of the convolution over space; 0 means depthwise
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """(B, H, W, C) → (B, H', W', features)."""
        hidden = self.expansion * x.shape[-1]
        plain = {"weight_norm": False, "use_bias": False, "dtype": self.dtype}
        copies = 4 if self.resize == "up" else 1
        x = BatchNorm(name="norm_in")(x, train, copies)
        x = Conv(hidden, **plain, name="expand")(x)
        x = BatchNorm(nn.swish, name="norm_expand")(x, train, copies)
        if self.resize == "up":
            x = upsample_nearest(x)
        x = Conv(
            hidden,
            self.kernel_size,
            stride=2 if self.resize == "down" else 1,
            groups=self.groups or hidden,
            **plain,
            name="spatial",
        )(x)
        x = BatchNorm(nn.swish, name="norm_spatial")(x, train)
        x = Conv(self.features, **plain, name="project")(x)
        return BatchNorm(name="norm_out")(x, train)


def _residual(**options) -> Callable[..., nn.Module]:
    return lambda **fields: ResidualConv(**options, **fields)


def _inverted(name: str) -> Callable[..., nn.Module]:
    expansion, kernel_size, groups = map(int, re.findall(r"\d+", name))
    return lambda **fields: InvertedResidual(
        expansion=expansion, kernel_size=kernel_size, groups=groups, **fields
    )


OPERATIONS: dict[str, Callable[..., nn.Module]] = {
    "res_elu": _residual(activation=nn.elu, batch_norm=False),
    "res_bnelu": _residual(activation=nn.elu),
    "res_bnswish": _residual(),
    "res_bnswish5": _residual(dilation=2),
    **{
        name: _inverted(name)
        for name in ("mconv_e6k5g0", "mconv_e3k5g0", "mconv_e3k5g8", "mconv_e6k11g0")
    },
}


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate, computed from the channels' means (Hu et al., 2018)."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, H, W, C) → (B, H, W, C). The gate and the sums of its gradient are in float32."""
        channels = x.shape[-1]
        hidden = max(channels // 16, 4)
        gate = x.astype(jnp.float32).mean((1, 2))
        gate = nn.relu(self._dense(channels, hidden, "squeeze")(gate))
        gate = nn.sigmoid(self._dense(hidden, channels, "excite")(gate))
        return (x * gate[:, None, None, :]).astype(x.dtype)

    def _dense(self, inputs: int, outputs: int, name: str) -> nn.Dense:
        init = uniform_fan_in(inputs)
        return nn.Dense(outputs, kernel_init=init, bias_init=init, name=name)


class Skip(nn.Module):
    """The skip connection of a cell that halves or doubles the resolution, without batch norm."""

    features: int
    resize: Resize
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, H, W, C) → (B, H', W', features)."""
        if self.resize == "up":
            # A 1×1 convolution commutes with interpolation and is cheaper at the low resolution.
            x = Conv(self.features, use_bias=False, dtype=self.dtype, name="conv")(x)
            return upsample_bilinear(x)
        x = nn.swish(x)
        quarter = self.features // 4
        widths = (quarter, quarter, quarter, self.features - 3 * quarter)
        offsets = ((0, 0), (1, 1), (0, 1), (1, 0))
        parts = [
            Conv(width, dtype=self.dtype, name=f"conv_{i}")(x[:, row::2, column::2])
            for i, (width, (row, column)) in enumerate(zip(widths, offsets, strict=True))
        ]
        return jnp.concatenate(parts, axis=-1)


class Cell(nn.Module):
    """Residual cell: `skip(x) + 0.1 · SE(operations(x))`.

    With `resize` "down" the cell halves the resolution and doubles the channels, with "up" the
    reverse. Only the first operation and the skip connection change the shape.
    """

    operations: tuple[str, ...]
    resize: Resize = "same"
    squeeze_excite: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """(B, H, W, C) → (B, H', W', C')."""
        channels = x.shape[-1]
        features = {"same": channels, "down": 2 * channels, "up": channels // 2}[self.resize]
        y, skip = x, x
        for i, operation in enumerate(self.operations):
            make = OPERATIONS[operation]
            resize = self.resize if i == 0 else "same"
            y = make(features=features, resize=resize, dtype=self.dtype, name=f"op_{i}")(y, train)
        if self.squeeze_excite:
            y = SqueezeExcite(name="squeeze_excite")(y)
        if self.resize != "same":
            skip = Skip(features, self.resize, self.dtype, name="skip")(x)
        return skip + 0.1 * y
