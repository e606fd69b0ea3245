"""A trained model for inference: batch norm folded into convolutions, kernels normalised once.

A batch norm between two linear operations, or behind one, is part of a convolution when its
statistics are constants. The first one of a residual cell in pre-activation form stays, since it is
between a sum and a nonlinearity; so does the first one of an inverted residual below float32, where
a convolution of what is not centred would round more.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array, lax

from nvae_jax.model.architecture import ModelConfig
from nvae_jax.model.convolution import Conv
from nvae_jax.model.kernels.batch_norm import EPSILON
from nvae_jax.model.normalization import BatchNorm
from nvae_jax.model.nvae import NVAE, effective_kernels

Path = tuple[str, ...]

# Batch norms of an operation: the convolution that takes each in, and on which side.
_INSIDE = {
    "norm_in": ("expand", "input"),
    "norm_expand": ("expand", "output"),
    "norm_spatial": ("spatial", "output"),
    "norm_out": ("project", "output"),
}


class FoldedNVAE(NVAE):
    """A model whose variables are what `fold` returns; `train` must be False."""

    def apply(self, *args: Any, **kwargs: Any) -> Any:
        """As of any Flax module."""
        with nn.intercept_methods(_apply_folded):
            return super().apply(*args, **kwargs)


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
    """Variables of a `FoldedNVAE` that computes what an `NVAE` computes with `train=False`.

    Args:
      config: of the model; kernels get its `dtype`.
      variables: `params` and `batch_stats` of the model.
    """
    dtype = jnp.dtype(config.dtype)
    params = flatten_dict(variables["params"])
    statistics = flatten_dict(variables.get("batch_stats", {}))
    kernels = flatten_dict(effective_kernels(variables["params"]))
    layers = {
        path: _Affine(kernel, params.get((*path, "bias"))) for path, kernel in kernels.items()
    }
    # Sorted, so that of two behind one convolution the inner one comes first.
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
    """The convolution that takes in a batch norm, and the side; None: there is none."""
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
    """kernel ∗ x + bias; a stack of them may have a leading axis of groups."""

    def __init__(self, kernel: Array, bias: Array | None):
        self.kernel, self.bias = kernel, bias

    def take_in(self, side: str, mean: Array, factor: Array, bias: Array) -> None:
        """Puts (x - mean) · factor + bias on the side of the input or of the output."""
        before = 0.0 if self.bias is None else self.bias
        if side == "input":
            shift = bias - mean * factor
            self.bias = before + jnp.einsum("...hwio,...i->...o", self.kernel, shift)
            self.kernel = self.kernel * factor[..., None, None, :, None]
        else:
            self.bias = (before - mean) * factor + bias
            self.kernel = self.kernel * factor[..., None, None, None, :]
