"""Weight-normalised, depthwise and data-initialised convolutions."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from nvae_jax.model.kernels.depthwise import depthwise_conv
from nvae_jax.model.kernels.pointwise import pointwise_conv

KERNEL_AXES = (-4, -3, -2)  # all but the output channels, which allows leading axes of a stack


def uniform_fan_in(fan_in: int) -> nn.initializers.Initializer:
    """Initialiser that draws from U(-1/√fan_in, 1/√fan_in)."""
    bound = 1 / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def kernel_norm(kernel: Array) -> Array:
    """L2 norm per output channel, with gradient 0 at 0: (…, H, W, I, O) → (…, 1, 1, 1, O)."""
    squares = jnp.sum(jnp.square(kernel), KERNEL_AXES, keepdims=True)
    return jnp.sqrt(jnp.maximum(squares, 1e-30))


def kernel_and_factor(weights: Any, mask: np.ndarray | None = None) -> tuple[Array, Array]:
    """The masked kernel and a factor per output channel; a convolution applies their product.

    Args:
      weights: parameters of a `Conv`, or of a stack of them: `kernel` (…, H, W, I, O) and, if the
        convolution is weight-normalised, `log_gain` (…, O).
      mask: (H, W, I, O), zeros at the inputs that an autoregressive flow must not depend on.

    Returns: the masked kernel w (…, H, W, I, O), and a factor (…, 1, 1, 1, O), which is
      exp(log_gain) / (‖w‖ + 1e-5), or 1 without weight normalisation.
    """
    kernel = weights["kernel"] if mask is None else weights["kernel"] * mask
    if "log_gain" not in weights:
        return kernel, jnp.ones((*kernel.shape[:-4], 1, 1, 1, kernel.shape[-1]), kernel.dtype)
    gain = jnp.exp(weights["log_gain"])[..., None, None, None, :]
    return kernel, gain / (kernel_norm(kernel) + 1e-5)


def effective_kernel(weights: Any, mask: np.ndarray | None = None) -> Array:
    """The kernel (…, H, W, I, O) that a convolution applies; see `kernel_and_factor`."""
    kernel, factor = kernel_and_factor(weights, mask)
    return kernel * factor


class Conv(nn.Module):
    """Convolution with an odd square kernel, by default weight-normalised and with a bias.

    A stride of 2 pads both sides by half the kernel, so that output (i, j) is centred on input
    (2i, 2j). `data_init` sets bias and gain from the first batch, so that the outputs of a new
    layer have mean 0 and standard deviation 1/5 (Salimans & Kingma, 2016); `init` then requires
    real data.
    """

    features: int
    kernel_size: int = 1
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    weight_norm: bool = True
    use_bias: bool = True
    data_init: bool = False
    log_gain_shift: float = 0.0
    dtype: Any = jnp.float32

    def kernel_mask(self, shape: tuple[int, ...]) -> np.ndarray | None:
        """Mask of a kernel of `shape` (H, W, I, O), or None for a kernel without a mask."""
        return None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, H, W, C) → (B, H / stride, W / stride, features)."""
        k = self.kernel_size
        shape = (k, k, x.shape[-1] // self.groups, self.features)
        mask = self.kernel_mask(shape)
        initializer = uniform_fan_in(k * k * shape[2])
        weights = {"kernel": self.param("kernel", initializer, shape)}
        if self.weight_norm:
            weights["log_gain"] = self.param("log_gain", self._init_log_gain, weights, x, mask)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self._init_bias, initializer, weights, x, mask)
        return self.convolve(x, effective_kernel(weights, mask), bias)

    def convolve(self, x: Array, kernel: Array, bias: Array | None = None) -> Array:
        """Applies the layer with a given kernel and bias instead of its parameters.

        Args:
          x: (B, H, W, I · groups).
          kernel: (k, k, I, O), already multiplied by the mask.
          bias: (O,), or None.

        Returns: (B, H / stride, W / stride, O) in the dtype of the layer.
        """
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        y = self._convolve(x, kernel, self.kernel_mask(kernel.shape))
        # In float32, because the gradient of the bias is a sum over all pixels of a batch.
        return y if bias is None else (y + bias).astype(y.dtype)

    def _convolve(self, x: Array, kernel: Array, mask: np.ndarray | None) -> Array:
        if self.groups == x.shape[-1] == self.features and self.dilation == 1:
            taps = None if mask is None else _taps(mask)
            return depthwise_conv(x, kernel, self.stride, taps)
        if self.kernel_size == 1 and self.groups == 1 and self.stride == 1:
            return pointwise_conv(x, kernel)
        kernel, padding = _without_masked_border(kernel, mask)
        return lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(self.stride, self.stride),
            padding=[(self.dilation * before, self.dilation * after) for before, after in padding],
            rhs_dilation=(self.dilation, self.dilation),
            feature_group_count=self.groups,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    def _init_log_gain(self, key, weights, x, mask):
        if self.data_init:
            _, spread = self._first_batch_statistics(weights, x, mask)
            return -jnp.log(spread)
        kernel = weights["kernel"] if mask is None else weights["kernel"] * mask
        return jnp.log(kernel_norm(kernel) + 1e-2).reshape(-1) - self.log_gain_shift

    def _init_bias(self, key, initializer, weights, x, mask):
        if self.data_init:
            mean, spread = self._first_batch_statistics(weights, x, mask)
            return -mean / spread
        return initializer(key, (self.features,))

    def _first_batch_statistics(self, weights, x, mask):
        unit = effective_kernel({**weights, "log_gain": jnp.zeros((self.features,))}, mask)
        y = self.convolve(x, unit).astype(jnp.float32)
        return y.mean((0, 1, 2)), 5 * y.std((0, 1, 2), ddof=1) + 1e-5


def _without_masked_border(kernel: Array, mask: np.ndarray | None):
    """The smallest part of a kernel that holds all its taps, and the padding that it requires."""
    pad = kernel.shape[0] // 2
    if mask is None:
        return kernel, ((pad, pad), (pad, pad))
    rows, columns = zip(*_taps(mask), strict=True)
    first, last = (min(rows), min(columns)), (max(rows), max(columns))
    kernel = kernel[first[0] : last[0] + 1, first[1] : last[1] + 1]
    return kernel, [(pad - i, j - pad) for i, j in zip(first, last, strict=True)]


def _taps(mask: np.ndarray) -> tuple[tuple[int, int], ...]:
    """The (row, column) positions of a kernel that a mask does not set to zero."""
    return tuple((int(i), int(j)) for i, j in np.argwhere(mask.any((2, 3))))
