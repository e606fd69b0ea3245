"""Images from a model: samples from the prior, and reconstructions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import Array

from nvae_jax.model.architecture import ModelConfig
from nvae_jax.model.distributions import image_distribution, without_border
from nvae_jax.model.nvae import NVAE


def decoded_mean(config: ModelConfig, logits: Array) -> Array:
    """The mean image of the decoder's distribution, without the border: (B, h, w, C) in [0, 1]."""
    return without_border(config, image_distribution(config, logits).mean())


def make_sampler(
    config: ModelConfig, num_images: int
) -> Callable[[Any, Array, Array | float], Array]:
    """A compiled function `(variables, key, temperature) → images` from the prior.

    Images are decoder means, (num_images, h, w, C) in [0, 1]. The temperature multiplies the
    prior's sigma: one number, or one a group (groups,), top-down.
    """
    model = NVAE(config)

    def sample(variables: Any, key: Array, temperature: Array | float) -> Array:
        logits: Any = model.apply(
            variables, num_images, temperature, method="sample_prior", rngs={"sample": key}
        )
        return decoded_mean(config, logits)

    return jax.jit(sample)


def make_reconstructor(config: ModelConfig) -> Callable[[Any, Array, Array], Array]:
    """A compiled function `(variables, x, key) → images`: decoder means given posterior draws.

    x is (B, H, W, C) in [0, 1]; the images are (B, h, w, C), without the border.
    """
    model = NVAE(config)

    def reconstruct(variables: Any, x: Array, key: Array) -> Array:
        output: Any = model.apply(variables, x, train=False, rngs={"sample": key})
        return decoded_mean(config, output.logits)

    return jax.jit(reconstruct)
