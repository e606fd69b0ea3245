"""The operations of a model, at the model's own shapes, in every formulation.

Which formulation is fastest on a platform can only be measured.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nvae_jax.measuring.flops import count_flops
from nvae_jax.measuring.timing import Row, measure
from nvae_jax.model.architecture import ModelConfig
from nvae_jax.model.cells import SqueezeExcite
from nvae_jax.model.kernels.batch_norm import EPSILON
from nvae_jax.model.kernels.depthwise import FORMULATIONS
from nvae_jax.model.kernels.pointwise import pointwise_conv
from nvae_jax.model.normalization import BatchNorm

# (the forward pass, a function from the arguments and the output's gradient to their gradients)
Formulation = tuple[Callable[..., Any], Callable[..., Any]]


@dataclasses.dataclass(frozen=True)
class Place:
    """A resolution of a model, with the channels of both towers and the expansion in its cells."""

    height: int
    width: int
    encoder_channels: int
    decoder_channels: int
    expansion: int

    @property
    def hidden(self) -> int:
        """Channels of the depthwise convolutions."""
        return self.expansion * self.decoder_channels


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation to measure.

    Attributes:
      name: with resolution and channels.
      arguments: trees of `jax.ShapeDtypeStruct`.
      formulations: of the same result; FLOPs are counted in the first.
    """

    name: str
    arguments: tuple[Any, ...]
    formulations: Mapping[str, Formulation]


def places(config: ModelConfig) -> list[Place]:
    """The finest resolution first: blocks before and after the latents, then the latent scales."""
    height, width, _ = config.image_shape
    encoder, decoder = config.encoder_channels, config.decoder_channels
    factors = [2**block for block in range(config.num_blocks)]
    return [
        *(Place(height // f, width // f, encoder * f, decoder * f, expansion=3) for f in factors),
        *(
            Place(s.height, s.width, s.encoder_channels, s.decoder_channels, expansion=6)
            for s in config.scales
        ),
    ]


def operations(config: ModelConfig, batch_size: int) -> list[Operation]:
    """The operations of the paper's cells at every place, for `batch_size` images.

    They are the encoder's 3×3 convolution and, of the decoder's cells, the expanding 1×1 and the
    depthwise 5×5 convolution, the batch norm and swish between them, and squeeze-and-excitation.
    """
    found = []
    for place in places(config):
        of = functools.partial(_shape, config.dtype)
        pixels = (batch_size, place.height, place.width)
        inside, hidden, outer = place.decoder_channels, place.hidden, place.encoder_channels
        x, wide = of(*pixels, inside), of(*pixels, hidden)
        vector = _shape("float32", hidden)
        gate = SqueezeExcite()
        gate_parameters = jax.eval_shape(gate.init, jax.random.key(0), x)
        arguments: dict[str, tuple[tuple[Any, ...], Mapping[str, Formulation]]] = {
            f"depthwise 5x5, {hidden}": ((wide, of(5, 5, 1, hidden)), DEPTHWISE),
            f"conv 3x3, {outer}": ((of(*pixels, outer), of(3, 3, outer, outer)), CONVOLUTION),
            f"conv 1x1, {inside} to {hidden}": ((x, of(1, 1, inside, hidden)), POINTWISE),
            f"batch norm and swish, {hidden}": ((wide, vector, vector), NORMALIZATION),
            f"squeeze-excite, {inside}": (
                (x, gate_parameters),
                {"as in the model": _automatic(lambda x, p, gate=gate: gate.apply(p, x))},
            ),
        }
        found += [
            Operation(f"{place.height}x{place.width} {name}", shapes, formulations)
            for name, (shapes, formulations) in arguments.items()
        ]
    return found


def _shape(dtype: str, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _automatic(forward: Callable[..., Any]) -> Formulation:
    """A formulation whose gradient JAX derives."""

    def gradient(*arguments: Any) -> Any:
        *inputs, g = arguments
        return jax.vjp(forward, *inputs)[1](g)

    return forward, gradient


def _convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)


def _normalize(x: jax.Array, scale: jax.Array, bias: jax.Array) -> Any:
    statistics = {"mean": jnp.zeros_like(bias), "var": jnp.ones_like(scale)}
    variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": statistics}
    return BatchNorm(nn.swish).apply(variables, x, True)


def _normalize_plainly(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    x32 = x.astype(jnp.float32)
    mean, var = x32.mean((0, 1, 2)), x32.var((0, 1, 2))
    y = (x32 - mean) * lax.rsqrt(var + EPSILON) * scale + bias
    return nn.swish(y.astype(x.dtype))


DEPTHWISE: dict[str, Formulation] = {
    name: (functools.partial(forward, stride=1), functools.partial(gradients, stride=1))
    for name, (forward, gradients) in FORMULATIONS.items()
}
CONVOLUTION = {"convolution": _automatic(_convolve)}
POINTWISE = {"matrix product": _automatic(pointwise_conv), "convolution": _automatic(_convolve)}
NORMALIZATION = {
    "as in the model": _automatic(_normalize),
    "gradient derived by JAX": _automatic(_normalize_plainly),
}


def measure_operations(config: ModelConfig, batch_size: int, repeats: int) -> list[Row]:
    """Forward and gradient of every operation in every formulation, on one device.

    Bytes are those of arguments and results, each counted once: the least that must be moved.
    """
    rows = []
    for operation in operations(config, batch_size):
        reference, _ = next(iter(operation.formulations.values()))
        g = jax.eval_shape(reference, *operation.arguments)
        shapes = {"forward": operation.arguments, "gradient": (*operation.arguments, g)}
        counts = _counts(operation, g)
        arrays = {direction: draw(arguments) for direction, arguments in shapes.items()}
        calls = {
            (formulation, direction): functools.partial(jax.jit(function), *arrays[direction])
            for formulation, (forward, gradient) in operation.formulations.items()
            for direction, function in {"forward": forward, "gradient": gradient}.items()
        }
        names = {key: f"{operation.name}; {'; '.join(key)}" for key in calls}
        seconds = measure({names[key]: call for key, call in calls.items()}, repeats)
        rows += [
            Row("operations", name, seconds[name], **counts[direction])
            for (_, direction), name in names.items()
        ]
    return rows


def _counts(operation: Operation, g: Any) -> dict[str, dict[str, Any]]:
    """FLOPs and bytes of both directions; g is the shape of the output's gradient."""
    forward, gradient = next(iter(operation.formulations.values()))
    traced = jax.jit(forward).trace(*operation.arguments)
    backward = jax.jit(gradient).trace(*operation.arguments, g)
    flops = count_flops(traced.jaxpr)
    moved = count_bytes((operation.arguments, traced.out_info))
    moved_back = count_bytes((operation.arguments, g, backward.out_info))
    # A gradient is traced with the forward pass that it belongs to.
    return {
        "forward": {"flops": flops, "bytes": moved},
        "gradient": {"flops": count_flops(backward.jaxpr) - flops, "bytes": moved_back},
    }


def count_bytes(tree: Any) -> int:
    """Bytes of all arrays, or shapes of arrays, of a tree."""
    return sum(math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


def draw(shapes: Any) -> Any:
    """Standard-normal numbers in arrays of a tree's shapes, on JAX's first device."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(rng.standard_normal(s.shape), s.dtype), shapes)
