"""Depthwise convolution: a grouped convolution, or a sum of shifted products on CPU.

XLA's CPU backend runs a grouped convolution, and above all the gradient of its kernel, many times
slower than the arithmetic requires. On GPUs it leaves all of it to cuDNN; the output and the
gradient of the input can be shifted products there, too, in one fusion each that moves as many
bytes. `NVAE_JAX_DEPTHWISE_ON_GPU=products` chooses this, until it is measured which is faster.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from nvae_jax.errors import require

Taps = tuple[tuple[int, int], ...]


def _grouped(x, kernel, *, stride):
    """The plain formula; for shapes see `depthwise_conv`."""
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
    """Gradients of x and of the kernel by automatic differentiation."""
    _, vjp = jax.vjp(functools.partial(_grouped, stride=stride), x, kernel)
    return vjp(g)


# The number of pixels per block in the gradient of a kernel. XLA's CPU backend emits vector
# instructions for a block only if it has copied the block first, which it does from 16 uses on.
# Larger blocks take longer to compile.
_PIXELS = 16
_IMAGES = 8  # the largest number of images whose blocks are summed side by side


def _all_taps(kernel) -> Taps:
    k = kernel.shape[0]
    return tuple((i, j) for i in range(k) for j in range(k))


def _pad(x, widths):
    """Pads each image with zeros; `widths` are (before, after) for rows and for columns."""
    return jnp.pad(x, ((0, 0), *widths, (0, 0)))


def _pad_space(x, widths):
    return _computed_once(_pad(x, widths))


def _computed_once(x):
    # Without the barrier, XLA fuses the computation of `x` into each of its users and repeats it
    # there: the padding in every product, the sum in every operation that reads the output.
    return lax.optimization_barrier(x)


def _window(padded, i, j, shape, stride):
    """Every `stride`-th pixel from (i, j) onwards, as an array of `shape`."""
    _, height, width, _ = shape
    rows, columns = (height - 1) * stride + 1, (width - 1) * stride + 1
    return padded[:, i : i + rows : stride, j : j + columns : stride]


def _sum_of_products(padded, kernel, *, shape, stride, taps):
    """The sum over kernel positions of the padded input, shifted, times the kernel there."""
    return sum(
        _window(padded, i, j, shape, stride) * kernel[i, j, 0] for i, j in taps or _all_taps(kernel)
    )


def _output_shape(x, stride):
    batch, height, width, channels = x.shape
    return batch, -(-height // stride), -(-width // stride), channels


def _spread(g, x, stride):
    """The gradient of an output, with zeros for the pixels that a stride skips."""
    rest = [n - ((m - 1) * stride + 1) for n, m in zip(x.shape, g.shape, strict=True)]
    between = ((0, 0, 0), (0, rest[1], stride - 1), (0, rest[2], stride - 1), (0, 0, 0))
    return lax.pad(g, jnp.zeros((), g.dtype), between)


def _mirrored(kernel, taps):
    """The kernel of the input's gradient, and its taps in the order of the kernel's."""
    last = kernel.shape[0] - 1
    return kernel[::-1, ::-1], tuple((last - i, last - j) for i, j in taps or _all_taps(kernel))


def _shifted_products(x, kernel, *, stride, taps):
    """`_grouped` as a sum over kernel positions, each a product of the shifted input."""
    padded = _pad_space(x, [(kernel.shape[0] // 2,) * 2] * 2)
    options = {"shape": _output_shape(x, stride), "stride": stride, "taps": taps}
    return _computed_once(_sum_of_products(padded, kernel, **options))


def _shifted_gradients(x, kernel, g, *, stride, taps):
    """`_grouped_gradients` without a convolution."""
    g = _computed_once(g)
    padded = _pad_space(_spread(g, x, stride), [(kernel.shape[0] // 2,) * 2] * 2)
    mirrored, mirrored_taps = _mirrored(kernel, taps)
    dx = _sum_of_products(padded, mirrored, shape=x.shape, stride=1, taps=mirrored_taps)
    return _computed_once(dx), _kernel_gradient(x, kernel, g, stride, taps or _all_taps(kernel))


def _fused_products(x, kernel, *, stride, taps):
    """`_shifted_products` for GPUs, where padding and sums in float32 are part of one fusion."""
    return _fused(x, kernel, shape=_output_shape(x, stride), stride=stride, taps=taps)


def _fused_gradients(x, kernel, g, *, stride, taps):
    """`_grouped_gradients` whose input gradient is `_fused_products` of the output's.

    Sums over all pixels do not fuse with each other: as products, the gradient of a 5×5 kernel
    moves 13 times as many bytes.
    """
    mirrored, mirrored_taps = _mirrored(kernel, taps)
    spread = _spread(g, x, stride)
    dx = _fused(spread, mirrored, shape=x.shape, stride=1, taps=mirrored_taps)
    _, vjp = jax.vjp(lambda kernel: _grouped(x, kernel, stride=stride), kernel)
    return dx, *vjp(g)


def _fused(x, kernel, **options):
    padded = _pad(_computed_once(x), [(kernel.shape[0] // 2,) * 2] * 2)
    total = _sum_of_products(padded.astype(jnp.float32), kernel.astype(jnp.float32), **options)
    return _computed_once(total.astype(x.dtype))


def _kernel_gradient(x, kernel, g, stride, taps):
    """Sums g times the window of x under the kernel over images and pixels, block by block.

    The sum is in float32. Returns: (k, k, 1, C) in the dtype of `kernel`.
    """
    batch, height, width, channels = g.shape
    first, last = np.min(taps, 0), np.max(taps, 0)
    window = last - first + 1
    across = -(-width // _PIXELS)
    columns = -(-width // across)
    rows = min(height, -(-_PIXELS // columns))
    down = -(-height // rows)
    # The last blocks may extend beyond the border, where g is padded with zeros.
    beyond = down * rows - height, across * columns - width
    g = _pad_space(g.astype(jnp.float32), [(0, n) for n in beyond])
    pad = kernel.shape[0] // 2
    x = _pad_space(x, [(pad, pad + stride * n) for n in beyond])
    seen = (np.array([rows, columns]) - 1) * stride + window
    # The first axis can be divided between devices and between cores. The loop over the rest has at
    # least two iterations where the batch allows, because XLA unrolls a loop with only one.
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise_conv(x: Array, kernel: Array, stride: int = 1, taps: Taps | None = None) -> Array:
    """Convolves each channel with its own odd square kernel, with padding k // 2 on every side.

    On CPU it is computed by shifted products, elsewhere by a grouped convolution.

    Args:
      x: (B, H, W, C).
      kernel: (k, k, 1, C).
      stride: distance between output pixels, in rows and in columns.
      taps: (row, column) of each kernel position that is not zero by construction; None means all.
        Whether the other positions receive a gradient depends on the platform, so callers multiply
        the kernel by its mask.

    Returns: (B, ⌈H / stride⌉, ⌈W / stride⌉, C).
    """
    shifted = _for_platforms(_shifted_products, _fused_products, stride=stride, taps=taps)
    grouped = functools.partial(_grouped, stride=stride)
    return lax.platform_dependent(x, kernel, **shifted, default=grouped)


def _for_platforms(on_cpu: Any, on_gpu: Any, **options: Any) -> dict[str, Any]:
    """By platform, the formulation without a grouped convolution that is used there."""
    choice = os.environ.get("NVAE_JAX_DEPTHWISE_ON_GPU", "grouped")
    require(
        "NVAE_JAX_DEPTHWISE_ON_GPU", choice, choice in ("grouped", "products"), "grouped, products"
    )
    found = {"cpu": on_cpu} | ({"cuda": on_gpu} if choice == "products" else {})
    return {name: functools.partial(function, **options) for name, function in found.items()}


def _forward(x, kernel, stride, taps):
    return depthwise_conv(x, kernel, stride, taps), (x, kernel)


def _backward(stride, taps, residuals, g):
    shifted = _for_platforms(_shifted_gradients, _fused_gradients, stride=stride, taps=taps)
    grouped = functools.partial(_grouped_gradients, stride=stride)
    return lax.platform_dependent(*residuals, g, **shifted, default=grouped)


depthwise_conv.defvjp(_forward, _backward)


# All formulations, for benchmarks: by name, the forward function `(x, kernel, *, stride)` and the
# function `(x, kernel, g, *, stride)` that returns the gradients of x and of the kernel.
FORMULATIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "grouped convolution": (_grouped, _grouped_gradients),
    "shifted products": (
        functools.partial(_shifted_products, taps=None),
        functools.partial(_shifted_gradients, taps=None),
    ),
    "fused products": (
        functools.partial(_fused_products, taps=None),
        functools.partial(_fused_gradients, taps=None),
    ),
}
