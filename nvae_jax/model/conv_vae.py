"""The plain convolutional VAE: one vector of latents under a Normal prior.

The network that most libraries and courses give as "a VAE": strided convolutions with batch norm
and ReLU, dense mean and log-variance, and the mirror image as decoder.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from nvae_jax.model.convolution import Conv, uniform_fan_in
from nvae_jax.model.distributions import Normal, num_image_parameters
from nvae_jax.model.normalization import BatchNorm
from nvae_jax.model.vae import VAE, Encoded, Latents, Noise, VAEConfig, VAEOutput, draw

_NEW_WEIGHT = 0.1  # of a batch's statistics in the running average
_KERNEL = 3


@dataclasses.dataclass(frozen=True)
class ConvVAEConfig(VAEConfig):
    """The section `model` of a plain convolutional VAE."""

    name: ClassVar[str] = "conv_vae"

    # Squared error is the plain network's: pixels through a ReLU, scored by their mean square. It
    # is no likelihood, so there are no nats and no bounds.
    likelihood: Literal["bernoulli", "logistic_mixture", "normal", "squared_error"] = (
        "logistic_mixture"
    )
    widths: tuple[int, ...] = (16, 32, 64, 128, 256)  # channels, doubling as sides are halved
    num_latents: int = 128
    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations; all else is float32

    def __post_init__(self):
        super().__post_init__()
        fits = 1 <= len(self.widths) <= 16 and all(1 <= width <= 2**14 for width in self.widths)
        self._require("widths", fits, "1 to 16 numbers from 1 to 16384")
        self._require_range("num_latents", 1, 2**14)
        divisor = 2 ** len(self.widths)
        height, width, _ = self.image_shape
        divides = not (height % divisor or width % divisor)
        allowed = f"a height and width divisible by {divisor} = 2^(number of widths)"
        self._require("image_shape", divides, allowed)

    @property
    def latent_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """(height, width, latents) of the one group."""
        return ((1, 1, self.num_latents),)

    @property
    def groups_per_scale(self) -> tuple[int, ...]:
        """One group in one scale."""
        return (1,)

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """(h, w, C) of the features between convolutions and latents."""
        height, width, _ = self.image_shape
        divisor = 2 ** len(self.widths)
        return height // divisor, width // divisor, self.widths[-1]


class TransposedConv(nn.Module):
    """A 3×3 convolution of stride 1/2, padding 1 and output padding 1, with a bias."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, H, W, C) → (B, 2H, 2W, features)."""
        shape = (_KERNEL, _KERNEL, x.shape[-1], self.features)
        # What PyTorch takes for the fan-in of a transposed convolution.
        initializer = uniform_fan_in(_KERNEL**2 * self.features)
        kernel = self.param("kernel", initializer, shape)
        bias = self.param("bias", initializer, (self.features,))
        y = lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            window_strides=(1, 1),
            padding=((1, 2), (1, 2)),
            lhs_dilation=(2, 2),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return (y + bias).astype(y.dtype)


class Dense(nn.Module):
    """A dense layer, in float32."""

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, C) → (B, features)."""
        initializer = uniform_fan_in(x.shape[-1])
        kernel = self.param("kernel", initializer, (x.shape[-1], self.features))
        bias = self.param("bias", initializer, (self.features,))
        return x.astype(jnp.float32) @ kernel + bias


class Encoder(nn.Module):
    """Images to mean and log-variance of the latents."""

    config: ConvVAEConfig

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """(B, H, W, C) in [0, 1] → (B, 2Z)."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        for i, width in enumerate(config.widths):
            conv = Conv(width, _KERNEL, 2, weight_norm=False, dtype=dtype, name=f"conv_{i}")
            x = BatchNorm(jax.nn.relu, _NEW_WEIGHT, name=f"norm_{i}")(conv(x), train)
        x = x.reshape(len(x), -1)
        names = ("mean", "log_variance")
        return jnp.concatenate([Dense(config.num_latents, name=name)(x) for name in names], -1)


class Decoder(nn.Module):
    """Latents to the parameters of the image's distribution."""

    config: ConvVAEConfig

    @nn.compact
    def __call__(self, z: Array, train: bool) -> Array:
        """(B, 1, 1, Z) → (B, H, W, parameters)."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        shape = config.feature_shape
        x = Dense(math.prod(shape), name="projection")(z.reshape(len(z), -1))
        x = x.reshape(-1, *shape)
        for i, width in enumerate((*config.widths[-2::-1], config.widths[0])):
            conv = TransposedConv(width, dtype, name=f"conv_{i}")
            x = BatchNorm(jax.nn.relu, _NEW_WEIGHT, name=f"norm_{i}")(conv(x), train)
        channels = num_image_parameters(config)
        x = Conv(channels, _KERNEL, weight_norm=False, dtype=dtype, name="image")(x)
        return x if config.has_likelihood else jax.nn.relu(x)


class ConvVAE(VAE):
    """One group of latents, without a place in the image: (B, 1, 1, Z)."""

    config: ConvVAEConfig

    def setup(self) -> None:
        """Makes encoder and decoder."""
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)

    def bottom_up(self, x: Array, train: bool) -> Encoded:
        """See `VAE`: mean and log-variance side by side, (B, 2Z)."""
        self._check_images(x)
        return self.encoder(x, train), []

    def top_down(self, encoded: Encoded, train: bool, noise: Noise | None = None) -> VAEOutput:
        """See `VAE`."""
        (posterior,) = self.posteriors(encoded)
        prior = Normal(jnp.zeros(()), jnp.ones(()))
        z = posterior.sample(self._draw(noise, len(posterior.mean)))
        kl = posterior.kl(prior)[:, 0, 0]
        return VAEOutput(
            logits=self.decoder(z, train),
            log_q=posterior.log_prob(z).sum((1, 2, 3)),
            log_p=prior.log_prob(z).sum((1, 2, 3)),
            kl=kl.sum(-1, keepdims=True),
            kl_per_channel=kl.mean(0, keepdims=True),
            kl_per_image_and_channel=kl[:, None],
        )

    def posteriors(self, encoded: Encoded) -> list[Normal]:
        """The posterior of every group of latents, (B, 1, 1, Z)."""
        mean, log_variance = jnp.split(encoded[0][:, None, None], 2, axis=-1)
        return [Normal(mean, jnp.exp(log_variance / 2))]

    def encode(self, x: Array, noise: Noise | None = None) -> Latents:
        """See `VAE`."""
        (posterior,) = self.posteriors(self.bottom_up(x, False))
        z = posterior.sample(self._draw(noise, len(x)))
        return Latents(values=[z], noise=[z])

    def decode(
        self,
        latents: Sequence[Array],
        given: Array | None = None,
        temperature: float | Array = 1.0,
        noise: Noise | None = None,
    ) -> Array:
        """See `VAE`."""
        num_images = len(latents[0])
        self._check_shapes("latents", latents, num_images)
        (z,) = latents
        if given is not None:
            drawn = jnp.reshape(temperature, -1)[0] * self._draw(noise, num_images)
            z = jnp.where(jnp.broadcast_to(given, (num_images, 1))[:, :, None, None], z, drawn)
        return self.decoder(z, False)

    def sample_prior(
        self,
        num_images: int,
        temperature: float | Array = 1.0,
        noise: Noise | None = None,
        train: bool = False,
    ) -> Array:
        """See `VAE`."""
        z = jnp.reshape(temperature, -1)[0] * self._draw(noise, num_images)
        return self.decoder(z, train)

    def _draw(self, noise: Noise | None, num_images: int) -> Array:
        """Standard-normal noise (B, 1, 1, Z)."""
        return draw(self._noise(noise, num_images)[0], (num_images, 1, 1, self.config.num_latents))
