"""The distributions of latents and of images, all in float32."""

from __future__ import annotations

import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array, nn

from nvae_jax.model import mixture
from nvae_jax.model.vae import VAEConfig, VAEOutput

ACTIVE_KL = 0.1  # nats per image above which a latent channel counts as active
_UNIFORM_MARGIN = 1e-5  # keeps uniforms away from 0 and 1, where their quantiles are infinite


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


@flax.struct.dataclass
class LogisticMixture:
    """Mixture of M discretised logistics per pixel, colours coupled linearly (PixelCNN++, §2).

    A component gives channel i of a pixel the mean `means_i + Σ_{j<i} coefficients_ji · x_j`, with
    x_j observed. The levels are -1, -1 + 2δ, …, 1 with δ = 1 / (2^bits - 1); the first and the last
    bin reach to infinity, so the bins' masses sum to 1.

    Pixels are the last axes: with a few components there, most lanes would be padding.

    logits: (M, B, H, W) of the components.
    means, log_scales: (C, M, B, H, W).
    coefficients: (pairs, M, B, H, W), pairs of channels in the order 0→1, 0→2, 1→2, 0→3, …
    official_bins: the tests of the official code instead, with which 8-bit bins sum to more than 1.
    """

    logits: Array
    means: Array
    log_scales: Array
    coefficients: Array
    num_bits: int = flax.struct.field(pytree_node=False, default=8)
    official_bins: bool = flax.struct.field(pytree_node=False, default=False)

    @staticmethod
    def num_parameters(channels: int, mixtures: int) -> int:
        """Parameters of one pixel: 10·M for three channels."""
        return mixtures * (1 + channels * (2 + channels // 2))

    @classmethod
    def from_logits(
        cls, logits: Array, channels: int, mixtures: int, num_bits: int, official_bins: bool = False
    ) -> LogisticMixture:
        """From the network's output.

        logits: (B, H, W, parameters): M mixture logits, then for every channel M means, M
        log-scales and its share, ⌊C / 2⌋ · M, of the coefficients (for an even C a few are unused).
        """
        pixels = logits.shape[:-1]
        parameters = jnp.moveaxis(logits.astype(jnp.float32), -1, 0).reshape(-1, mixtures, *pixels)
        of_channels = parameters[1:].reshape(channels, 2 + channels // 2, mixtures, *pixels)
        pairs = channels * (channels - 1) // 2
        coefficients = of_channels[:, 2:].reshape(-1, mixtures, *pixels)[:pairs]
        return cls(
            logits=parameters[0],
            means=of_channels[:, 0],
            log_scales=jnp.maximum(of_channels[:, 1], -7.0),
            coefficients=jnp.tanh(coefficients),
            num_bits=num_bits,
            official_bins=official_bins,
        )

    def log_prob(self, x: Array) -> Array:
        """x: (B, H, W, C) in [0, 1], on the levels → (B, H, W) nats."""
        channels = jnp.moveaxis(2.0 * x - 1.0, -1, 0)
        dependence = [_dependence(self.coefficients, i, channels[:i]) for i in range(len(channels))]
        means = self.means + jnp.stack(dependence)
        bins = _official_log_mass if self.official_bins else _log_mass
        log_mass = bins(channels[:, None], means, self.log_scales, 2**self.num_bits - 1)
        return nn.logsumexp(log_mass.sum(0) + nn.log_softmax(self.logits, axis=0), axis=0)

    def mean(self) -> Array:
        """(B, H, W, C) in [0, 1]: mixture means, each channel given the clipped earlier ones."""
        weights = nn.softmax(self.logits, axis=0)
        return _clipped_channels(
            (weights * self.means).sum(1), (weights * self.coefficients).sum(1)
        )

    def sample(self, key: Array, temperature: float = 1.0) -> Array:
        """(B, H, W, C) in [0, 1], unrounded; see `sample_from_uniforms`."""
        key_component, key_value = jax.random.split(key)
        low, high = _UNIFORM_MARGIN, 1.0 - _UNIFORM_MARGIN
        channels, mixtures, *pixels = self.means.shape
        return self.sample_from_uniforms(
            jax.random.uniform(key_component, (*pixels, mixtures), minval=low, maxval=high),
            jax.random.uniform(key_value, (*pixels, channels), minval=low, maxval=high),
            temperature,
        )

    def sample_from_uniforms(
        self, component: Array, value: Array, temperature: float = 1.0
    ) -> Array:
        """The image that uniform draws become.

        Args:
          component: (B, H, W, M) in (0, 1), picks a component by the Gumbel-max trick.
          value: (B, H, W, C) in (0, 1), quantiles of the channels' logistics.
          temperature: divides the mixture logits and multiplies the logistics' scales.

        Returns: (B, H, W, C) in [0, 1], unrounded, each channel given the clipped earlier ones.
        """
        gumbel = -jnp.log(-jnp.log(jnp.moveaxis(component, -1, 0)))
        chosen = jnp.argmax(self.logits / temperature + gumbel, axis=0)
        chosen = nn.one_hot(chosen, self.logits.shape[0], axis=0, dtype=bool)
        means, log_scales, coefficients = (
            jnp.where(chosen, parameter, 0.0).sum(1)
            for parameter in (self.means, self.log_scales, self.coefficients)
        )
        logistic = jnp.moveaxis(jnp.log(value) - jnp.log1p(-value), -1, 0)
        return _clipped_channels(means + temperature * jnp.exp(log_scales) * logistic, coefficients)


def _clipped_channels(values: Array, coefficients: Array) -> Array:
    """values (C, B, H, W), coefficients (pairs, B, H, W) → (B, H, W, C) in [0, 1]."""
    channels: list[Array] = []
    for i, value in enumerate(values):
        channels.append(jnp.clip(value + _dependence(coefficients, i, channels), -1.0, 1.0))
    return _to_unit(jnp.stack(channels, axis=-1))


def _dependence(coefficients: Array, channel: int, earlier: Array | list[Array]) -> Array:
    """What the earlier channels of a pixel add to the mean of this one."""
    first = channel * (channel - 1) // 2
    start = jnp.zeros(coefficients.shape[1:], coefficients.dtype)
    return sum((coefficients[first + j] * x for j, x in enumerate(earlier)), start=start)


def _to_unit(x: Array) -> Array:
    return x / 2.0 + 0.5


def _log_mass(x: Array, mean: Array, log_scale: Array, steps: int) -> Array:
    """Log of the logistic mass of the level `x`; finite and differentiable everywhere."""
    half = 1.0 / steps
    inverse_scale = jnp.exp(-log_scale)
    upper, lower = (x + half - mean) * inverse_scale, (x - half - mean) * inverse_scale
    below, above = nn.log_sigmoid(upper), nn.log_sigmoid(-lower)
    # log(σ(a) - σ(b)) = log σ(a) + log σ(-b) + log(1 - e^(b-a)), and for a narrow bin the last term
    # is log(a-b) - (a-b)/2, which does not underflow.
    width = 2.0 * half * inverse_scale
    narrow = width < 1e-3
    log_width = math.log(2.0 * half) - log_scale
    wide = jnp.log(-jnp.expm1(-jnp.where(narrow, 1.0, width)))
    inside = below + above + jnp.where(narrow, log_width - width / 2.0, wide)
    return jnp.where(x < -1.0 + half, below, jnp.where(x > 1.0 - half, above, inside))


def _official_log_mass(x: Array, mean: Array, log_scale: Array, steps: int) -> Array:
    """The same by the rules of the official implementation, for comparison with its numbers."""
    half = 1.0 / steps
    inverse_scale = jnp.exp(-log_scale)
    middle = (x - mean) * inverse_scale
    upper, lower = middle + half * inverse_scale, middle - half * inverse_scale
    difference = nn.sigmoid(upper) - nn.sigmoid(lower)
    log_density = middle - log_scale - 2.0 * nn.softplus(middle)
    inside = jnp.where(
        difference > 1e-5,
        jnp.log(jnp.maximum(difference, 1e-10)),
        log_density - math.log(steps / 2.0),
    )
    above = -nn.softplus(lower)
    return jnp.where(x < -0.999, nn.log_sigmoid(upper), jnp.where(x > 0.99, above, inside))


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
