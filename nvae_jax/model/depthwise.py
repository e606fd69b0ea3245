"""Depthwise convolution with gradients that are fast on every platform.

XLA's CPU backend runs a grouped convolution, and above all its kernel gradient, many times slower
than the arithmetic needs. There a depthwise convolution is a sum of shifted products instead.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

Taps = tuple[tuple[int, int], ...]

_REDUCED_TOGETHER = 32  # products in one variadic reduction; more slows compilation
_CACHE_LINE = 64  # bytes


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise_conv(x: Array, kernel: Array, stride: int = 1, taps: Taps | None = None) -> Array:
    """Convolves each channel with its own odd square kernel, padding k // 2 zeros on every side.

    Args:
      x: (B, H, W, C).
      kernel: (k, k, 1, C).
      stride: of the output, in rows and columns.
      taps: positions of the kernel that are not zero by construction; None: all.

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


def _padded(x, pad):
    """Zeros around every image and, behind some numbers of channels, unused ones."""
    line = _CACHE_LINE // x.dtype.itemsize
    # The kernel's gradient follows one channel over all pixels, and pixels that are a multiple of
    # four lines apart meet in a quarter of a cache's sets or less, where nearly all would miss. The
    # forward pass pads alike, so that its copy serves for the gradient.
    spare = line if x.shape[-1] % (4 * line) == 0 else 0
    return _computed_once(jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, spare))))


def _computed_once(x):
    # Without it the compiler fuses what makes `x` into every product that reads it, and the sums
    # into everything that reads them, and computes each over and over.
    return lax.optimization_barrier(x)


def _window(padded, i, j, shape, stride):
    """Every `stride`-th pixel from (i, j) on, as an array of `shape`, without unused channels."""
    _, height, width, channels = shape
    rows, columns = (height - 1) * stride + 1, (width - 1) * stride + 1
    return padded[:, i : i + rows : stride, j : j + columns : stride, :channels]


def _shifted_products(x, kernel, *, stride, taps):
    padded = _padded(x, kernel.shape[0] // 2)
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
    spread = _padded(lax.pad(g, jnp.zeros((), g.dtype), between), pad)
    dx = sum(
        _window(spread, 2 * pad - i, 2 * pad - j, x.shape, 1) * kernel[i, j, 0] for i, j in taps
    )
    return _computed_once(dx), _kernel_gradient(x, kernel, g, stride, taps)


# Ways to compute the same: forward `(x, kernel, *, stride)`, and `(x, kernel, g, *, stride)` to the
# gradients of x and kernel.
FORMULATIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "grouped convolution": (_grouped, _grouped_gradients),
    "shifted products": (
        functools.partial(_shifted_products, taps=None),
        functools.partial(_shifted_gradients, taps=None),
    ),
}


def _add_all(a, b):
    return [p + q for p, q in zip(a, b, strict=True)]


def _kernel_gradient(x, kernel, g, stride, taps):
    padded = _padded(x, kernel.shape[0] // 2)
    g = g.astype(jnp.float32)
    dkernel = jnp.zeros(kernel.shape, jnp.float32)
    for start in range(0, len(taps), _REDUCED_TOGETHER):
        some = taps[start : start + _REDUCED_TOGETHER]
        products = [_window(padded, i, j, g.shape, stride) * g for i, j in some]
        zeros = [jnp.zeros((), jnp.float32)] * len(some)
        # One reduction over space of all products reads the activations once.
        sums = lax.reduce(products, zeros, _add_all, (1, 2))
        rows, columns = zip(*some, strict=True)
        dkernel = dkernel.at[rows, columns, 0].set(jnp.stack(sums).sum(1))
    return dkernel.astype(kernel.dtype)
