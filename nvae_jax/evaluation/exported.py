"""A trained model as compiled functions that run with JAX alone (`jax.export`)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array, export

from nvae_jax.compilation import jit_for
from nvae_jax.evaluation.latents import make_decoder, make_encoder
from nvae_jax.evaluation.sampling import make_draw
from nvae_jax.evaluation.trained import TrainedModel
from nvae_jax.evaluation.weights import named, unnamed
from nvae_jax.model import VAEConfig
from nvae_jax.model.families import fold

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export_functions(
    model: TrainedModel, platform: str, batch_size: int
) -> dict[str, export.Exported]:
    """The functions of a model, for one platform and number of images.

    The first argument of the others is what `prepare` returns. A seed and an image's number decide
    what is drawn for it, as in the modes.

    Args:
      model: the model.
      platform: one of `PLATFORMS`, which need not be there.
      batch_size: B.

    Returns: by name
      `prepare`: `(weights) → prepared`, both by name; weights as `named` returns them.
      `sample`: `(prepared, index, seed, temperatures) → images`.
      `encode`: `(prepared, x, index, seed, posterior_temperature) → {"values", "noise"}`, the means
        at any temperature where the model has no posterior (see `Objective`).
      `decode`: `(prepared, latents, given, index, seed, temperatures) → images`.

      Numbers of images `index` and seeds are uint32, (B,) and (); temperatures (groups,); x (B, H,
      W, C) and images (B, h, w, C) in [0, 1]; latents, values and noise one (B, h, w, Z) per group,
      top-down; given (B, groups), whether a latent is given or drawn.
    """
    config, has_posterior = model.config, model.run.objective.has_posterior
    weights = {name: _shape(x.shape) for name, x in named(model.variables).items()}
    index, seed = _shape((batch_size,), np.uint32), _shape((), np.uint32)
    temperatures = _shape((config.total_groups,))
    x = _shape((batch_size, *config.image.shape))
    latents = [_shape((batch_size, *shape)) for shape in config.latent_shapes]
    given = _shape((batch_size, config.total_groups), bool)
    prepared = jax.eval_shape(_prepare(config), weights)
    arguments: dict[str, tuple[Callable[..., Any], Sequence[Any]]] = {
        "prepare": (_prepare(config), (weights,)),
        "sample": (_sample(config), (prepared, index, seed, temperatures)),
        "encode": (_encode(config, has_posterior), (prepared, x, index, seed, _shape(()))),
        "decode": (_decode(config), (prepared, latents, given, index, seed, temperatures)),
    }
    return {
        name: export.export(jit_for(platform, function), platforms=[platform])(*shapes)
        for name, (function, shapes) in arguments.items()
    }


def _shape(shape: tuple[int, ...], dtype: Any = np.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


@functools.cache
def _prepare(config: VAEConfig) -> Callable[..., Any]:
    return lambda weights: named(fold(config, unnamed(weights)))


@functools.cache
def _sample(config: VAEConfig) -> Callable[..., Any]:
    draw = make_draw(config)

    def sample(prepared: Any, index: Array, seed: Array, temperatures: Array) -> Array:
        return draw(unnamed(prepared), index, seed, temperatures)

    return sample


@functools.cache
def _encode(config: VAEConfig, has_posterior: bool) -> Callable[..., Any]:
    encoder = make_encoder(config)

    def encode(
        prepared: Any, x: Array, index: Array, seed: Array, posterior_temperature: Array
    ) -> dict[str, list[Array]]:
        batch = {"x": x, "index": index}
        scale = posterior_temperature if has_posterior else 0.0 * posterior_temperature
        latents = encoder(unnamed(prepared), batch, seed, scale)
        return {"values": latents.values, "noise": latents.noise}

    return encode


@functools.cache
def _decode(config: VAEConfig) -> Callable[..., Any]:
    decoder = make_decoder(config, "latents")

    def decode(
        prepared: Any,
        latents: list[Array],
        given: Array,
        index: Array,
        seed: Array,
        temperatures: Array,
    ) -> Array:
        batch = {"latents": latents, "given": given, "index": index}
        return decoder(unnamed(prepared), batch, seed, temperatures)

    return decode
