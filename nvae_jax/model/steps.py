"""A folded model in steps: one group of latents at a time, for coders that draw between them.

What `NVAE.top_down` and `NVAE.decode` do in one pass is here

    h, prior = start
    for each group:  posterior = posterior(h, tap, prior);  z = a draw;  h = combine(h, z)
                     and, before the next one,  h, prior = prior(h)
    parameters = image(h)

Groups of one scale share their functions: which group is meant is decided by its variables alone.

A coder needs the same bits wherever it runs. So convolutions of many channels are sums over few at
a time here: XLA's CPU backend divides a long sum otherwise on one thread than on several.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from nvae_jax.model.architecture import ModelConfig, Scale
from nvae_jax.model.convolution import Conv
from nvae_jax.model.decoder import Decoder, LatentGroup
from nvae_jax.model.distributions import Normal, image_distribution
from nvae_jax.model.flows import FlowCell
from nvae_jax.model.folding import applying_folded
from nvae_jax.model.nvae import NVAE

_SHORT = 64  # input channels whose sum XLA does not divide


@flax.struct.dataclass
class Belief:
    """A Normal of a group's latents: its raw parameters, and what they mean; (B, h, w, Z) or ()."""

    raw: tuple[Array, Array]
    mean: Array
    sigma: Array

    @classmethod
    def from_raw(cls, raw: tuple[Array, Array]) -> Belief:
        """From what `LatentGroup` returns."""
        normal = Normal.from_raw(*raw)
        return cls(raw, normal.mean, normal.sigma)


class _DecoderStep(Decoder):
    """One method of a decoder, applied by itself."""

    @nn.compact
    def __call__(self, name: str, *args: Any) -> Any:  # type: ignore[override]
        return getattr(self, name)(*args)


@contextlib.contextmanager
def _in_short_sums() -> Iterator[None]:
    """Inside, modules are applied to folded variables, with products in short sums."""
    with nn.intercept_methods(_divide_products), applying_folded():
        yield


def _divide_products(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    layer = context.module
    if not isinstance(layer, Conv) or context.method_name != "__call__":
        return call(*args, **kwargs)
    kernel: Any = layer.get_variable("params", "kernel")
    bias: Any = layer.get_variable("params", "bias")
    x = args[0]
    inputs = kernel.shape[2]
    masked = kernel.shape[0] > 1 and layer.kernel_mask(kernel.shape) is not None
    if masked or layer.groups > 1 or inputs <= _SHORT:
        return call(*args, **kwargs)
    y: Any = 0.0
    for first in range(0, inputs, _SHORT):
        part = slice(first, first + _SHORT)
        y = y + layer.convolve(x[..., part], kernel[:, :, part])
    return y if bias is None else (y + bias).astype(y.dtype)


def scale_of_group(config: ModelConfig, group: int) -> int:
    """The number of a group's scale, from the finest, 0; groups count from the top."""
    for s in reversed(range(config.num_scales)):
        group -= config.scales[s].groups
        if group < 0:
            return s
    raise IndexError("there is no such group")


def group_variables(config: ModelConfig, variables: Any, group: int) -> Any:
    """The folded variables of one group of the decoder, from those of the whole model."""
    s = scale_of_group(config, group)
    above = sum(scale.groups for scale in config.scales[s + 1 :])
    is_top = s == config.num_scales - 1
    name, place = ("first", None) if group == 0 else (f"scale_{s}", group - above - is_top)

    def part(collection: Any) -> Any:
        tree = collection.get("decoder", {}).get(name, {})
        return tree if place is None else jax.tree.map(lambda x: x[place], tree)

    return {kind: part(collection) for kind, collection in variables.items()}


def decoder_variables(variables: Any) -> Any:
    """The folded variables of the decoder outside its groups, from those of the whole model."""
    return {
        kind: {
            name: tree
            for name, tree in collection.get("decoder", {}).items()
            if name != "first" and not name.startswith("scale_")
        }
        for kind, collection in variables.items()
    }


def taps(config: ModelConfig, variables: Any, x: Array) -> list[Array]:
    """What each group's posterior is given of images x (B, H, W, C) in [0, 1]; top-down."""
    with _in_short_sums():
        encoded: Any = NVAE(config).apply(variables, x, False, method="bottom_up")
    top, by_scale = encoded
    found = [top]
    for scale, tapped in reversed(list(zip(config.scales, by_scale, strict=False))):
        groups = scale.groups - (scale is config.scales[-1])
        found += list(tapped[:groups][::-1])
    return found


def start(config: ModelConfig, decoder: Any, num_images: int) -> tuple[Array, Belief]:
    """The features and the prior of the first group, by what `decoder_variables` returns."""
    with _in_short_sums():
        h: Any = _DecoderStep(config).apply(decoder, "start", num_images)
    return h, Belief.from_raw((jnp.zeros(()), jnp.zeros(())))


def posterior(
    config: ModelConfig, group: LatentGroup, variables: Any, h: Array, tap: Array, prior: Belief
) -> Belief:
    """The posterior of a group, before its flows."""
    with _in_short_sums():
        raw: Any = group.apply(variables, h, tap, prior.raw, method="posterior")
    return Belief.from_raw(raw)


def combine(group: LatentGroup, variables: Any, h: Array, z: Array) -> Array:
    """The features after a group."""
    with _in_short_sums():
        return group.apply(variables, h, z, method="combine")  # type: ignore[return-value]


def prior(
    config: ModelConfig, group: LatentGroup, variables: Any, h: Array, decoder: Any, enlarge: int
) -> tuple[Array, Belief]:
    """The features and the prior of a group after the first.

    Args:
      config: of the model.
      group: the module.
      variables: of the group.
      h: the features after the group above.
      decoder: what `decoder_variables` returns.
      enlarge: the number of the group's scale if the group above is in another one, else -1.
    """
    with _in_short_sums():
        if enlarge >= 0:
            enlarged: Any = _DecoderStep(config).apply(decoder, "enlarge", h, enlarge, False)
            h = enlarged
        outputs: Any = group.apply(variables, h, False, method="prior")
    h, raw = outputs
    return h, Belief.from_raw(raw)


def image(config: ModelConfig, decoder: Any, h: Array) -> Any:
    """The image's distribution, from the features after the last group."""
    with _in_short_sums():
        logits: Any = _DecoderStep(config).apply(decoder, "image", h, False)
    return image_distribution(config, logits)


def flow_shift(config: ModelConfig, variables: Any, z: Array, mirrored: bool) -> Array:
    """What a flow cell of the kind `shift` takes away from latents (B, h, w, Z)."""
    cell = FlowCell(config.flow, mirrored, jnp.dtype(config.dtype))
    with _in_short_sums():
        _, seen = cell.apply(
            variables,
            z,
            capture_intermediates=lambda module, _: module.name == "head",
            mutable=["intermediates"],
        )
    return seen["intermediates"]["head"]["__call__"][0].astype(jnp.float32)


def group_module(config: ModelConfig, group: int) -> LatentGroup:
    """The module of a group."""
    scale: Scale = config.scales[scale_of_group(config, group)]
    return LatentGroup(config, scale.decoder_channels, first=group == 0)
