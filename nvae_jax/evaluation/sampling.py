"""Images from a model: samples from the prior, and reconstructions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import numpy as np
from jax import Array

from nvae_jax.errors import require
from nvae_jax.evaluation.trained import TrainedModel, image_keys
from nvae_jax.model.distributions import image_distribution
from nvae_jax.model.families import make_folded_network, make_network
from nvae_jax.model.vae import VAEConfig, no_noise

Pixels = Literal["mean", "sample"]


def decoded_mean(config: VAEConfig, logits: Array) -> Array:
    """The mean image of the decoder's distribution, without the border: (B, h, w, C) in [0, 1]."""
    return config.image.without_border(image_distribution(config, logits).mean())


def make_sampler(
    config: VAEConfig, num_images: int
) -> Callable[[Any, Array, Array | float], Array]:
    """A compiled function `(variables, key, temperature) → images` from the prior.

    Images are decoder means, (num_images, h, w, C) in [0, 1]. The temperature multiplies the
    prior's sigma: one number, or one per group (groups,), top-down.
    """
    model = make_network(config)

    def sample(variables: Any, key: Array, temperature: Array | float) -> Array:
        logits: Any = model.apply(
            variables, num_images, temperature, method="sample_prior", rngs={"sample": key}
        )
        return decoded_mean(config, logits)

    return jax.jit(sample)


def make_reconstructor(config: VAEConfig, has_posterior: bool = True) -> Callable[..., Array]:
    """A compiled function `(variables, x, key) → images`: decoder means given posterior draws.

    x is (B, H, W, C) in [0, 1]; the images are (B, h, w, C), without the border. Without a
    posterior (see `Objective`), they are those of the codes' means.
    """
    model = make_network(config)

    def reconstruct(variables: Any, x: Array, key: Array) -> Array:
        noise = None if has_posterior else no_noise(config, len(x))
        output: Any = model.apply(variables, x, False, noise, rngs={"sample": key})
        return decoded_mean(config, output.logits)

    return jax.jit(reconstruct)


def sample_batches(
    model: TrainedModel,
    number: int,
    temperatures: np.ndarray,
    seed: int,
    batch_size: int,
    pixels: Pixels = "mean",
) -> Iterator[tuple[int, np.ndarray]]:
    """Draws images 0 to `number` - 1 of a seed from the prior, a batch at a time.

    One compiled function goes from the images' numbers to pixels, without a way back to the host.

    Args:
      model: the model.
      number: how many images.
      temperatures: (groups,), top-down.
      seed: image i depends on the seed and on i alone.
      batch_size: images at a time on each device.
      pixels: the decoder's mean, or a sample.

    Yields: the number of the first image, and images (B, h, w, C) float32 in [0, 1].
    """
    return model.over_arrays(
        make_draw(model.config, pixels),
        np.arange(number, dtype=np.uint32),
        batch_size,
        "images sampled",
        constants=(np.uint32(seed), temperatures),
    )


@functools.cache
def make_draw(config: VAEConfig, pixels: Pixels = "mean") -> Callable[..., Array]:
    """A function `(variables, index, seed, temperatures) → images` from the prior, for `jit`.

    The variables are those that `fold` returns. See `sample_batches`.

    Raises:
      ConfigError: pixels are to be drawn that have no distribution.
    """
    allowed = f"mean: model.likelihood = {config.likelihood!r} is no distribution of pixels"
    require("pixels", pixels, pixels == "mean" or config.has_likelihood, allowed)
    network = make_folded_network(config)

    def draw(variables: Any, index: Array, seed: Array, temperatures: Array) -> Array:
        keys = image_keys(seed, index)
        logits: Any = network.apply(
            variables, len(index), temperatures, keys, method="sample_prior"
        )
        if pixels == "mean":
            return decoded_mean(config, logits)
        return sampled_pixels(config, logits, image_keys(seed, index, draw=1))

    return draw


def sampled_pixels(config: VAEConfig, logits: Array, keys: Array) -> Array:
    """Draws from the decoder's distribution, one key per image (B,), without the border."""

    def one(logits: Array, key: Array) -> Array:
        return image_distribution(config, logits[None]).sample(key)[0]

    return config.image.without_border(jax.vmap(one)(logits, keys))
