"""The plain convolutional VAE: one code per image under a Normal prior, and a class if asked for.

The network that most libraries and courses give as "a VAE": strided convolutions with batch norm
and ReLU, dense mean and log-variance, and the mirror image as decoder.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from nvae_jax.model import mixture
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

    widths: tuple[int, ...] = (16, 32, 64, 128, 256)  # channels after every halving of the sides
    num_latents: int = 128
    num_classes: int = 0  # of a discrete code beside the latents; 0: none

    def __post_init__(self):
        super().__post_init__()
        fits = 1 <= len(self.widths) <= 16 and all(1 <= width <= 2**14 for width in self.widths)
        self._require("widths", fits, "1 to 16 numbers from 1 to 16384")
        self._require_range("num_latents", 1, 2**14)
        allowed = "0, or 2 to 1024"
        self._require("num_classes", self.num_classes in (0, *range(2, 1025)), allowed)
        divisor = 2 ** len(self.widths)
        height, width, _ = self.image_shape
        divides = not (height % divisor or width % divisor)
        allowed = f"a height and width divisible by {divisor} = 2^(number of widths)"
        self._require("image_shape", divides, allowed)

    @property
    def latent_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """(height, width, latents) of the code, and of the class before it."""
        classes = ((1, 1, self.num_classes),) if self.num_classes else ()
        return (*classes, (1, 1, self.num_latents))

    @property
    def groups_per_scale(self) -> tuple[int, ...]:
        """All in one scale."""
        return (len(self.latent_shapes),)

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
    """Images to mean and log-variance of the code, and logits of the classes."""

    config: ConvVAEConfig

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """(B, H, W, C) in [0, 1] → (B, 2Z + K)."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        for i, width in enumerate(config.widths):
            conv = Conv(width, _KERNEL, 2, weight_norm=False, dtype=dtype, name=f"conv_{i}")
            x = BatchNorm(jax.nn.relu, _NEW_WEIGHT, name=f"norm_{i}")(conv(x), train)
        x = x.reshape(len(x), -1)
        sizes = {"mean": config.num_latents, "log_variance": config.num_latents}
        if config.num_classes:
            sizes["classes"] = config.num_classes
        return jnp.concatenate([Dense(size, name=name)(x) for name, size in sizes.items()], -1)


class Decoder(nn.Module):
    """Latents to the parameters of the image's distribution."""

    config: ConvVAEConfig

    @nn.compact
    def __call__(self, z: Array, y: Array | None, train: bool) -> Array:
        """Codes (B, Z) and one-hot classes (B, K), where there are some → (B, H, W, parameters)."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        shape = config.feature_shape
        code = z if y is None else jnp.concatenate([z, y], -1)
        x = Dense(math.prod(shape), name="projection")(code)
        x = x.reshape(-1, *shape)
        for i, width in enumerate((*config.widths[-2::-1], config.widths[0])):
            conv = TransposedConv(width, dtype, name=f"conv_{i}")
            x = BatchNorm(jax.nn.relu, _NEW_WEIGHT, name=f"norm_{i}")(conv(x), train)
        channels = num_image_parameters(config)
        x = Conv(channels, _KERNEL, weight_norm=False, dtype=dtype, name="image")(x)
        return x if config.has_likelihood else jax.nn.relu(x)


class ConvVAE(VAE):
    """One code per image, (B, 1, 1, Z), after a class, (B, 1, 1, K), where there is one."""

    config: ConvVAEConfig

    def setup(self) -> None:
        """Makes encoder and decoder."""
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)

    def bottom_up(self, x: Array, train: bool) -> Encoded:
        """See `VAE`: mean, log-variance and logits of the classes side by side, (B, 2Z + K)."""
        self._check_images(x)
        return self.encoder(x, train), []

    def top_down(self, encoded: Encoded, train: bool, noise: Noise | None = None) -> VAEOutput:
        """See `VAE`."""
        *class_noise, style_noise = self._draws(noise, len(encoded[0]))
        posterior, class_logits = self.posterior(encoded)
        prior = Normal(jnp.zeros(()), jnp.ones(()))
        z = posterior.sample(style_noise[:, 0, 0])
        kl = posterior.kl(prior)[:, None]
        if class_logits is None:
            every, logits = None, self.decoder(z, None, train)
        else:
            every = mixture.decode_classes(
                lambda z, y: self.decoder(z, y, train), z, self.config.num_classes
            )
            y = mixture.draw_class(class_logits, class_noise[0][:, 0, 0])
            logits = jnp.einsum("bk,bk...->b...", y, every.astype(y.dtype))
            kl = self._with_class_kl(class_logits, kl)
        return VAEOutput(
            logits=logits,
            log_q=posterior.log_prob(z).sum(1),
            log_p=prior.log_prob(z).sum(1),
            kl=kl.sum(-1),
            kl_per_channel=kl.mean(0),
            kl_per_image_and_channel=kl,
            posterior=posterior,
            codes=z,
            class_logits=class_logits,
            logits_of_classes=every,
        )

    def posterior(self, encoded: Encoded) -> tuple[Normal, Array | None]:
        """The posterior of the codes, (B, Z), and of the classes, logits (B, K)."""
        latents = self.config.num_latents
        mean, log_variance, class_logits = jnp.split(encoded[0], (latents, 2 * latents), axis=-1)
        normal = Normal(mean, jnp.exp(log_variance / 2))
        return normal, class_logits if self.config.num_classes else None

    def encode(self, x: Array, noise: Noise | None = None) -> Latents:
        """See `VAE`; a class is one of K numbers that is 1, and without noise the likeliest."""
        *class_noise, style_noise = self._draws(noise, len(x))
        posterior, class_logits = self.posterior(self.bottom_up(x, False))
        z = posterior.sample(style_noise[:, 0, 0])[:, None, None]
        if class_logits is None:
            return Latents(values=[z], noise=[z])
        (draws,) = class_noise
        y = mixture.draw_class(class_logits, draws[:, 0, 0])[:, None, None]
        return Latents(values=[y, z], noise=[mixture.noise_of_class(y, draws), z])

    def decode(
        self,
        latents: Sequence[Array],
        given: Array | None = None,
        temperature: float | Array = 1.0,
        noise: Noise | None = None,
    ) -> Array:
        """See `VAE`."""
        num_images, groups = len(latents[0]), self.config.total_groups
        self._check_shapes("latents", latents, num_images)
        if given is not None:
            chosen = jnp.broadcast_to(given, (num_images, groups)).T[..., None, None, None]
            drawn = self._prior(num_images, temperature, noise)
            latents = [jnp.where(c, z, d) for c, z, d in zip(chosen, latents, drawn, strict=True)]
        return self._decode(latents, False)

    def sample_prior(
        self,
        num_images: int,
        temperature: float | Array = 1.0,
        noise: Noise | None = None,
        train: bool = False,
    ) -> Array:
        """See `VAE`; classes are equally likely, at any temperature."""
        return self._decode(self._prior(num_images, temperature, noise), train)

    def _decode(self, latents: Sequence[Array], train: bool) -> Array:
        *classes, z = (x[:, 0, 0] for x in latents)
        y = classes[0] if classes else None
        return self.decoder(z, y, train)

    def _prior(
        self, num_images: int, temperature: float | Array, noise: Noise | None
    ) -> list[Array]:
        *class_noise, style_noise = self._draws(noise, num_images)
        temperatures = jnp.broadcast_to(temperature, (self.config.total_groups,))
        classes = [mixture.draw_class(jnp.zeros_like(draws), draws) for draws in class_noise]
        return [*classes, temperatures[-1] * style_noise]

    def _draws(self, noise: Noise | None, num_images: int) -> list[Array]:
        """Standard-normal noise of every group of latents."""
        draws = self._noise(noise, num_images)
        shapes = self.config.latent_shapes
        return [draw(x, (num_images, *shape)) for x, shape in zip(draws, shapes, strict=True)]

    def _with_class_kl(self, class_logits: Array, kl: Array) -> Array:
        """(B, 1, Z) and the classes' KL, in the first of as many channels: (B, 2, channels)."""
        channels = max(self.config.num_latents, self.config.num_classes)
        of_class = mixture.class_kl(class_logits)[:, None, None]
        return jnp.concatenate([_padded(of_class, channels), _padded(kl, channels)], axis=1)


def _padded(kl: Array, channels: int) -> Array:
    """Zeros behind the last axis."""
    return jnp.pad(kl, ((0, 0), (0, 0), (0, channels - kl.shape[-1])))
