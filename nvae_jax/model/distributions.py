"""The distributions of latents and of images, all in float32."""

from __future__ import annotations

import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array, nn

from nvae_jax.model import mixture
from nvae_jax.model.logistic_mixture import LogisticMixture
from nvae_jax.model.vae import VAEConfig, VAEOutput

ACTIVE_KL = 0.1  # nats per image above which a latent channel counts as active


def soft_clamp(x: Array) -> Array:
    """Smoothly bounds `x` to (-5, 5)."""
    return 5.0 * jnp.tanh(x / 5.0)


@flax.struct.dataclass
class Normal:
    """Diagonal Normal distribution with soft-clamped parameters (NVAE, §3.2 and appendix A)."""

    mean: Array
    sigma: Array

    @classmethod
    def from_raw(cls, mean: Array, log_sigma: Array, temperature: Array | float = 1.0) -> Normal:
        """From what the network puts out. Raw (0, 0) is mean 0, sigma 1.01.

        `temperature` multiplies sigma.
        """
        mean, log_sigma = mean.astype(jnp.float32), log_sigma.astype(jnp.float32)
        sigma = jnp.exp(soft_clamp(log_sigma)) + 1e-2
        return cls(soft_clamp(mean), sigma * temperature)

    def sample(self, noise: Array) -> Array:
        """The draw that standard-normal `noise` becomes."""
        return self.mean + self.sigma * noise

    def noise(self, z: Array) -> Array:
        """The standard-normal draw that becomes `z`: the inverse of `sample`."""
        return (z - self.mean) / self.sigma

    def log_prob(self, z: Array) -> Array:
        """Log density of each variable, in nats."""
        return -0.5 * jnp.square(self.noise(z)) - jnp.log(self.sigma) - 0.5 * math.log(2 * math.pi)

    def kl(self, other: Normal) -> Array:
        """KL(self ‖ other) of each variable, in nats."""
        shift = (self.mean - other.mean) / other.sigma
        ratio = self.sigma / other.sigma
        return 0.5 * (jnp.square(shift) + jnp.square(ratio)) - 0.5 - jnp.log(ratio)


@flax.struct.dataclass
class Bernoulli:
    """Independent binary pixels; logits (B, H, W, C)."""

    logits: Array

    def log_prob(self, x: Array) -> Array:
        """x: (B, H, W, C) of 0 and 1 → (B, H, W) nats."""
        return (x * self.logits - nn.softplus(self.logits)).sum(-1)

    def mean(self) -> Array:
        """(B, H, W, C) in [0, 1]."""
        return nn.sigmoid(self.logits)

    def sample(self, key: Array, temperature: float = 1.0) -> Array:
        """(B, H, W, C) of 0 and 1; a temperature below 1 prefers the likelier value."""
        return jax.random.bernoulli(key, nn.sigmoid(self.logits / temperature)).astype(jnp.float32)


@flax.struct.dataclass
class NormalPixels:
    """A Normal density on pixels mapped to [-1, 1]: continuous, without dequantisation."""

    normal: Normal

    @classmethod
    def from_logits(cls, logits: Array) -> NormalPixels:
        """logits: (B, H, W, 2C): C raw means, then C raw log-sigmas."""
        return cls(Normal.from_raw(*jnp.split(logits, 2, axis=-1)))

    def log_prob(self, x: Array) -> Array:
        """x: (B, H, W, C) in [0, 1] → (B, H, W) nats of density on [-1, 1]."""
        return self.normal.log_prob(2.0 * x - 1.0).sum(-1)

    def mean(self) -> Array:
        """(B, H, W, C) in [0, 1]."""
        return _to_unit(jnp.clip(self.normal.mean, -1.0, 1.0))

    def sample(self, key: Array, temperature: float = 1.0) -> Array:
        """(B, H, W, C) in [0, 1]; the temperature multiplies sigma."""
        noise = temperature * jax.random.normal(key, self.normal.mean.shape)
        return _to_unit(jnp.clip(self.normal.sample(noise), -1.0, 1.0))


@flax.struct.dataclass
class Pixels:
    """Pixels without a distribution; values (B, H, W, C)."""

    values: Array

    def mean(self) -> Array:
        """(B, H, W, C) in [0, 1]."""
        return jnp.clip(self.values, 0.0, 1.0)


def _to_unit(x: Array) -> Array:
    return x / 2.0 + 0.5


def num_image_parameters(config: VAEConfig) -> int:
    """Channels that the decoder must put out for one pixel."""
    channels = config.image_shape[-1]
    if config.likelihood in ("bernoulli", "squared_error"):
        return channels
    if config.likelihood == "normal":
        return 2 * channels
    return LogisticMixture.num_parameters(channels, config.num_mixtures)


def image_distribution(config: VAEConfig, logits: Array) -> Any:
    """The distribution over images that the decoder's output stands for.

    It has `log_prob(x)`, `mean()` and `sample(key, temperature)`; images: (B, H, W, C) in [0, 1].
    A head of squared error has a mean only.
    """
    logits = logits.astype(jnp.float32)
    if config.likelihood == "squared_error":
        return Pixels(logits)
    if config.likelihood == "bernoulli":
        return Bernoulli(logits)
    if config.likelihood == "normal":
        return NormalPixels.from_logits(logits)
    return LogisticMixture.from_logits(
        logits,
        config.image_shape[-1],
        config.num_mixtures,
        config.num_bits,
        official_bins=config.bins == "official",
    )


def log_likelihood(config: VAEConfig, logits: Array, x: Array) -> Array:
    """log p(x | z) of whole images, without the border.

    Args:
      config: of the model.
      logits: (B, H, W, parameters), the decoder's output.
      x: (B, H, W, C) in [0, 1].

    Returns: (B,) nats.
    """
    log_prob = image_distribution(config, logits).log_prob(x)
    return config.image.without_border(log_prob).sum((1, 2))


def reconstruction_error(config: VAEConfig, output: VAEOutput, x: Array) -> Array:
    """What the head says of images, and training minimises: (B,), without the border.

    That is -log p(x | z) in nats; of a head of squared error, the mean of its squares. With classes
    it is the mean over their posterior.

    Args:
      config: of the model.
      output: of its network.
      x: (B, H, W, C) in [0, 1].
    """
    return mixture.expected(output.class_logits, errors_of_classes(config, output, x))


def errors_of_classes(config: VAEConfig, output: VAEOutput, x: Array) -> Array:
    """The error of `reconstruction_error` for every class, (B, K); without classes (B,)."""
    if output.class_logits is None:
        return error_of_logits(config, output.logits, x)

    def of_class(logits: Array) -> Array:
        return error_of_logits(config, logits, x)

    return jax.vmap(of_class, in_axes=1, out_axes=1)(output.logits_of_classes)


def error_of_logits(config: VAEConfig, logits: Array, x: Array) -> Array:
    """The error of `reconstruction_error` from a head's parameters (B, H, W, parameters): (B,)."""
    if config.has_likelihood:
        return -log_likelihood(config, logits, x)
    return config.image.without_border(jnp.square(logits - x)).mean((1, 2, 3))


def bits_per_dimension(nats: float, dimensions: int) -> float:
    """Converts nats per image to bits per dimension."""
    return nats / (math.log(2) * dimensions)
