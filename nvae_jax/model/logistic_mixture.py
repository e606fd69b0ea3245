"""Discretised logistic mixtures of pixels (PixelCNN++, Salimans et al., 2017)."""

from __future__ import annotations

import math

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array, nn

_UNIFORM_MARGIN = 1e-5  # keeps uniforms away from 0 and 1, where their quantiles are infinite


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
    return jnp.stack(channels, axis=-1) / 2.0 + 0.5


def _dependence(coefficients: Array, channel: int, earlier: Array | list[Array]) -> Array:
    """What the earlier channels of a pixel add to the mean of this one."""
    first = channel * (channel - 1) // 2
    start = jnp.zeros(coefficients.shape[1:], coefficients.dtype)
    return sum((coefficients[first + j] * x for j, x in enumerate(earlier)), start=start)


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
