"""Depthwise convolution with gradients that are fast on every platform.

The plain formula is a grouped convolution. XLA's CPU backend runs it, and above all its kernel
gradient, many times slower than the arithmetic requires; there it is a sum of shifted products.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

Taps = tuple[tuple[int, int], ...]

# The number of pixels whose products are summed at once for a kernel's gradient. XLA's CPU backend
# uses vector instructions there only if it has copied the block before, which it does from 16 uses
# on. Larger numbers take longer to compile.
_PIXELS = 16
_IMAGES = 8  # the most images whose blocks are summed side by side


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise_conv(x: Array, kernel: Array, stride: int = 1, taps: Taps | None = None) -> Array:
    """Convolves each channel with its own odd square kernel, padding k // 2 zeros on every side.

    Args:
      x: (B, H, W, C).
      kernel: (k, k, 1, C).
      stride: pixels between outputs, in rows and columns.
      taps: the positions of the kernel that are not zero by construction; None: all.

    Returns: (B, ⌈H / stride⌉, ⌈W / stride⌉, C).
    """
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_shifted_products, stride=stride, taps=taps),
        default=functools.partial(_grouped, stride=stride),
    )


def _forward(x, kernel, stride, taps):
    return depthwise_conv(x, kernel, stride, taps), (x, kernel)


def _backward(stride, taps, residuals, g):
    return lax.platform_dependent(
        *residuals,
        g,
        cpu=functools.partial(_shifted_gradients, stride=stride, taps=taps),
        default=functools.partial(_grouped_gradients, stride=stride),
    )


depthwise_conv.defvjp(_forward, _backward)


def _grouped(x, kernel, *, stride):
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        feature_group_count=x.shape[-1],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _grouped_gradients(x, kernel, g, *, stride):
    _, vjp = jax.vjp(functools.partial(_grouped, stride=stride), x, kernel)
    return vjp(g)


def _all_taps(kernel) -> Taps:
    k = kernel.shape[0]
    return tuple((i, j) for i in range(k) for j in range(k))


def _pad_space(x, widths):
    """Zeros around every image: (before, after) of rows and of columns."""
    return _computed_once(jnp.pad(x, ((0, 0), *widths, (0, 0))))


def _computed_once(x):
    # Without the barrier the compiler would fuse what makes `x` into every product that reads it,
    # and the sums into everything that reads them, and compute each of them again and again.
    return lax.optimization_barrier(x)


def _window(padded, i, j, shape, stride):
    """Every `stride`-th pixel from (i, j) on, as an array of `shape`."""
    _, height, width, _ = shape
    rows, columns = (height - 1) * stride + 1, (width - 1) * stride + 1
    return padded[:, i : i + rows : stride, j : j + columns : stride]


def _shifted_products(x, kernel, *, stride, taps):
    pad = kernel.shape[0] // 2
    padded = _pad_space(x, [(pad, pad)] * 2)
    batch, height, width, channels = x.shape
    shape = batch, -(-height // stride), -(-width // stride), channels
    return _computed_once(
        sum(
            _window(padded, i, j, shape, stride) * kernel[i, j, 0]
            for i, j in taps or _all_taps(kernel)
        )
    )


def _shifted_gradients(x, kernel, g, *, stride, taps):
    g = _computed_once(g)
    taps = taps or _all_taps(kernel)
    pad = kernel.shape[0] // 2
    # Between the rows and columns of a strided output the gradient is zero.
    rest = [n - ((m - 1) * stride + 1) for n, m in zip(x.shape, g.shape, strict=True)]
    between = ((0, 0, 0), (0, rest[1], stride - 1), (0, rest[2], stride - 1), (0, 0, 0))
    spread = _pad_space(lax.pad(g, jnp.zeros((), g.dtype), between), [(pad, pad)] * 2)
    dx = sum(
        _window(spread, 2 * pad - i, 2 * pad - j, x.shape, 1) * kernel[i, j, 0] for i, j in taps
    )
    return _computed_once(dx), _kernel_gradient(x, kernel, g, stride, taps)


# Formulations of the same operation: the forward function `(x, kernel, *, stride)`, and a function
# `(x, kernel, g, *, stride)` that returns the gradients of x and kernel.
FORMULATIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "grouped convolution": (_grouped, _grouped_gradients),
    "shifted products": (
        functools.partial(_shifted_products, taps=None),
        functools.partial(_shifted_gradients, taps=None),
    ),
}


def _kernel_gradient(x, kernel, g, stride, taps):
    """Σ over images and pixels of g times the part of x that the kernel sees there."""
    batch, height, width, channels = g.shape
    first, last = np.min(taps, 0), np.max(taps, 0)
    window = last - first + 1
    across = -(-width // _PIXELS)
    columns = -(-width // across)
    rows = min(height, -(-_PIXELS // columns))
    down = -(-height // rows)
    # The last blocks may reach over the border, where the gradient is zero.
    beyond = down * rows - height, across * columns - width
    g = _pad_space(g.astype(jnp.float32), [(0, n) for n in beyond])
    pad = kernel.shape[0] // 2
    x = _pad_space(x, [(pad, pad + stride * n) for n in beyond])
    seen = (np.array([rows, columns]) - 1) * stride + window
    # Devices and cores can share the first axis. The loop over the others has at least two rounds,
    # or the compiler would unroll it.
    together = math.gcd(batch, max(batch // 2, 1), _IMAGES)
    g, x = (y.reshape(together, -1, *y.shape[1:]) for y in (g, x))

    def add_block(n, total):
        image, row, column = n // (down * across), n // across % down * rows, n % across * columns
        corner = row * stride + first[0], column * stride + first[1]
        block = lax.dynamic_slice(
            g, (0, image, row, column, 0), (together, 1, rows, columns, channels)
        )
        under = lax.dynamic_slice(x, (0, image, *corner, 0), (together, 1, *seen, channels))
        block, under = block[:, 0, :, :, None, None], under[:, 0]
        return total + sum(
            under[:, i * stride :, j * stride :][:, : window[0], : window[1]] * block[:, i, j]
            for i in range(rows)
            for j in range(columns)
        )

    total = jnp.zeros((together, *window, channels), jnp.float32)
    total = lax.fori_loop(0, batch // together * down * across, add_block, total).sum(0)
    tap_rows, tap_columns = np.transpose(taps)
    dkernel = jnp.zeros(kernel.shape, jnp.float32)
    dkernel = dkernel.at[tap_rows, tap_columns, 0].set(
        total[tap_rows - first[0], tap_columns - first[1]]
    )
    return dkernel.astype(kernel.dtype)
