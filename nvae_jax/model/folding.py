"""A trained model for inference: batch norm folded into convolutions, kernels normalised once.

With constant statistics, a batch norm directly before or after a convolution can be folded into
that convolution. Two kinds are not folded: the first batch norm of a pre-activation residual cell,
which is between a sum and a nonlinearity; and, below float32, the first batch norm of an inverted
residual, because a convolution of inputs that are not centred has a larger rounding error.
"""

from __future__ import annotations

import contextlib
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array, lax

from nvae_jax.model.architecture import ModelConfig
from nvae_jax.model.convolution import KERNEL_AXES, Conv
from nvae_jax.model.kernels.batch_norm import EPSILON
from nvae_jax.model.normalization import BatchNorm
from nvae_jax.model.nvae import NVAE, effective_kernels

Path = tuple[str, ...]

# For each batch norm of an inverted residual, the convolution that it is folded into, and whether
# it precedes ("input") or follows ("output") that convolution.
_INSIDE = {
    "norm_in": ("expand", "input"),
    "norm_expand": ("expand", "output"),
    "norm_spatial": ("spatial", "output"),
    "norm_out": ("project", "output"),
}


class FoldedNVAE(NVAE):
    """An `NVAE` whose variables are those that `fold` returns; requires `train=False`."""

    def apply(self, *args: Any, **kwargs: Any) -> Any:
        """See `flax.linen.Module.apply`."""
        with applying_folded():
            return super().apply(*args, **kwargs)


def applying_folded() -> contextlib.AbstractContextManager[None]:
    """Inside, a module of the model is applied to its part of what `fold` returns."""
    return nn.intercept_methods(_apply_folded)


def _apply_folded(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    layer = context.module
    if context.method_name == "__call__":
        if isinstance(layer, Conv):
            return layer.convolve(
                args[0],
                layer.get_variable("params", "kernel"),
                layer.get_variable("params", "bias"),
            )
        if isinstance(layer, BatchNorm):
            x, train, *_ = args
            if train:
                raise ValueError("train is True; a folded model has no statistics of a batch")
            if not layer.has_variable("params", "scale"):
                return layer.activation(x.astype(jnp.float32)).astype(x.dtype)
    return call(*args, **kwargs)


def fold(config: ModelConfig, variables: Any) -> dict[str, Any]:
    """Variables with which a `FoldedNVAE` computes what an `NVAE` computes with `train=False`.

    Args:
      config: of the model; the kernels are cast to its `dtype`.
      variables: `params` and `batch_stats` of the model.

    Returns: `params` with kernels (…, H, W, I, O) and biases (…, O), and the `batch_stats` of those
      batch norms that are not folded. Leading axes are those of `variables`.
    """
    dtype = jnp.dtype(config.dtype)
    params = flatten_dict(variables["params"])
    statistics = flatten_dict(variables.get("batch_stats", {}))
    kernels = flatten_dict(effective_kernels(variables["params"]))
    layers = {
        path: _Affine(kernel, params.get((*path, "bias"))) for path, kernel in kernels.items()
    }
    # Sorted, so that of two batch norms after the same convolution the first is folded first.
    for norm in sorted(path[:-1] for path in statistics if path[-1] == "mean"):
        target = _target(norm, layers)
        if target is None:
            continue
        layer, side = target
        if side == "input" and dtype != jnp.float32:
            continue
        mean, var = (statistics.pop((*norm, name)) for name in ("mean", "var"))
        scale, bias = (params.pop((*norm, name)) for name in ("scale", "bias"))
        layers[layer].take_in(side, mean, scale * lax.rsqrt(var + EPSILON), bias)
    for path, affine in layers.items():
        params.pop((*path, "log_gain"), None)
        params[*path, "kernel"] = affine.kernel.astype(dtype)
        if affine.bias is not None:
            params[*path, "bias"] = affine.bias
    return {"params": unflatten_dict(params), "batch_stats": unflatten_dict(statistics)}


def _target(norm: Path, layers: dict[Path, _Affine]) -> tuple[Path, str] | None:
    """The convolution that a batch norm is folded into and on which side, or None."""
    *operation, name = norm
    if name in _INSIDE:
        conv, side = _INSIDE[name]
        return (*operation, conv), side
    *cell, number = operation
    before = (*cell, f"op_{int(number.removeprefix('op_')) - 1}")
    for conv in ("project", "conv"):
        if (*before, conv) in layers:
            return (*before, conv), "output"
    return None


class _Affine:
    """kernel ∗ x + bias, optionally a stack with a leading axis of groups."""

    def __init__(self, kernel: Array, bias: Array | None):
        self.kernel, self.bias = kernel, bias

    def take_in(self, side: str, mean: Array, factor: Array, bias: Array) -> None:
        """Composes with x → (x - mean) · factor + bias at the input or at the output."""
        before = 0.0 if self.bias is None else self.bias
        if side == "input":
            shift = bias - mean * factor
            # Not a product of matrices, which XLA's CPU backend divides by the number of threads.
            products = self.kernel * shift[..., None, None, :, None]
            self.bias = before + products.sum(KERNEL_AXES)
            self.kernel = self.kernel * factor[..., None, None, :, None]
        else:
            self.bias = (before - mean) * factor + bias
            self.kernel = self.kernel * factor[..., None, None, None, :]
