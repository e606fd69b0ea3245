"""What all families of models have in common: their configuration, their methods, their output.

Everything outside of this room (training, evaluation, modes) uses a model through these names only,
so that it serves every family; see `nvae_jax.model.families`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from nvae_jax.errors import ConfigError, require
from nvae_jax.fields import require_literals
from nvae_jax.image_spec import ImageSpec

Noise = Sequence[Array] | Array
Encoded = tuple[Array, list[Array]]


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """The fields of the section `model` that every family has: the images, and how they are scored.

    In a configuration, `image_shape`, `border` and `likelihood` may be None: they then follow from
    the data.

    Raises:
      ConfigError: a value is impossible; the message names the field.
    """

    name: ClassVar[str]  # of the family, a key of FAMILIES

    image_shape: tuple[int, int, int]  # height, width, channels; border included
    # Squared error is no likelihood: pixels through a ReLU, scored by their mean square.
    likelihood: Literal["bernoulli", "logistic_mixture", "normal", "squared_error"] = (
        "logistic_mixture"
    )
    num_bits: int = 8  # bits per channel that are kept and modelled; logistic mixture only
    num_mixtures: int = 10  # components of the logistic mixture
    bins: Literal["exact", "official"] = "exact"  # official: bins that sum to more than 1 at 8 bits
    border: int = 0  # pixels of padding on each side that the likelihood leaves out
    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations; all else is float32

    def __post_init__(self):
        require_literals(self, "model.")
        self._require_range("num_mixtures", 1, 1024)
        try:
            _ = self.image
        except ConfigError as error:
            raise ConfigError(f"model.{error}") from error

    def _require(self, name: str, condition: bool, allowed: str):
        require(f"model.{name}", getattr(self, name), condition, allowed)

    def _require_range(self, name: str, least: int, most: int):
        self._require(name, least <= getattr(self, name) <= most, f"{least} to {most}")

    @functools.cached_property
    def image(self) -> ImageSpec:
        """What the model's images are; it is of binary images if its likelihood is Bernoulli."""
        binarize = self.likelihood == "bernoulli"
        return ImageSpec(*self.image_shape, self.border, self.num_bits, binarize)

    @property
    def remat(self) -> str:
        """What the backward pass recomputes."""
        return "none"

    @property
    def unroll(self) -> bool | None:
        """Whether loops in the network, and over parts of a batch, are none; None: on CPU only."""
        return None

    @property
    def quick_to_compile(self) -> VAEConfig:
        """The same model, compiled sooner, for where there is no gradient to be slow."""
        return self

    @property
    def has_likelihood(self) -> bool:
        """Whether the head is a distribution of images, so that there is a bound in nats."""
        return self.likelihood != "squared_error"

    @property
    def latent_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """(height, width, latents) per group, top-down."""
        raise NotImplementedError

    @property
    def groups_per_scale(self) -> tuple[int, ...]:
        """Groups of latents in each scale, the coarsest first."""
        raise NotImplementedError

    @property
    def num_scales(self) -> int:
        """Latent scales."""
        return len(self.groups_per_scale)

    @property
    def total_groups(self) -> int:
        """Groups of latents over all scales."""
        return len(self.latent_shapes)

    @property
    def latent_dimensions(self) -> int:
        """Latent variables per image, over all groups."""
        return sum(math.prod(shape) for shape in self.latent_shapes)


@flax.struct.dataclass
class VAEOutput:
    """One pass through both towers; groups are in top-down order, values in nats.

    logits: (B, H, W, parameters) of the image's distribution, see `image_distribution`.
    log_q: (B,) log posterior density of the drawn latents, over all groups.
    log_p: (B,) their log prior density.
    kl: (B, groups) KL of posterior from prior; with flows its one-draw estimate log q - log p.
    kl_per_channel: (groups, Z) the same by latent channel, mean over the batch.
    kl_per_image_and_channel: (B, groups, Z) what the two before are made of.

    Of a model with one code per image, independent under the prior N(0, I):

    posterior: the Normal of its codes, (B, Z).
    codes: (B, Z) draws from it.

    Of a model with classes beside the code (see `nvae_jax.model.mixture`):

    class_logits: (B, K) of the classes' posterior.
    logits_of_classes: (B, K, H, W, parameters); `logits` are those of a class that was drawn, which
      has no part in `log_q` and `log_p`.
    """

    logits: Array
    log_q: Array
    log_p: Array
    kl: Array
    kl_per_channel: Array
    kl_per_image_and_channel: Array
    posterior: Any = None
    codes: Any = None
    class_logits: Any = None
    logits_of_classes: Any = None


@flax.struct.dataclass
class Latents:
    """Latents of all groups, one array (B, h, w, Z) per group, top-down.

    values: as `VAE.decode` accepts them.
    noise: the same as standard-normal draws, with which `VAE.sample_prior` gets the same image at
      temperature 1.
    """

    values: list[Any]
    noise: list[Any]


class VAE(nn.Module):
    """A model with the variables `params` and `batch_stats`.

    `init` with the RNG streams `params` and `sample`. With `train=True` make `batch_stats` mutable
    to get the updated running statistics.
    """

    config: VAEConfig

    def __call__(self, x: Array, train: bool, noise: Noise | None = None) -> VAEOutput:
        """Encodes images, draws latents from their posterior and decodes them.

        Args:
          x: (B, H, W, C) in [0, 1].
          train: normalise by the batch rather than by the running statistics.
          noise: standard-normal draws (B, h, w, Z), one array per group, top-down; or (B,) PRNG
            keys, one per image, whose draws do not depend on the rest of the batch; without it they
            come from the RNG stream `sample`.

        Raises: ValueError if the shape of `x` or of the noise is not the configuration's.
        """
        return self.top_down(self.bottom_up(x, train), train, noise)

    def bottom_up(self, x: Array, train: bool) -> Encoded:
        """The first half of `__call__`, which has no randomness: the features of images.

        Returns: an array whose first axis is that of the images, and arrays whose second axis is.
        """
        raise NotImplementedError

    def top_down(self, encoded: Encoded, train: bool, noise: Noise | None = None) -> VAEOutput:
        """The second half of `__call__`: latents from their posterior, and the image."""
        raise NotImplementedError

    def encode(self, x: Array, noise: Noise | None = None) -> Latents:
        """Latents of images, drawn from their posterior; zeros as noise give its means.

        A group's posterior depends on what was drawn in the groups above it, and its mean is taken
        before its flows, which then apply.

        Args and errors as in `__call__`, in evaluation.
        """
        raise NotImplementedError

    def decode(
        self,
        latents: Sequence[Array],
        given: Array | None = None,
        temperature: float | Array = 1.0,
        noise: Noise | None = None,
    ) -> Array:
        """Decodes latents; groups that are not given are drawn from the prior.

        Args:
          latents: (B, h, w, Z) per group, top-down; ignored in groups that are not given.
          given: (groups,) or (B, groups) bool, top-down; by default all are.
          temperature: of the prior, as in `sample_prior`.
          noise: as in `__call__`, for the groups that are not given.

        Returns: logits (B, H, W, parameters).

        Raises: ValueError if the latents' or the noise's shapes are not the configuration's.
        """
        raise NotImplementedError

    def sample_prior(
        self,
        num_images: int,
        temperature: float | Array = 1.0,
        noise: Noise | None = None,
        train: bool = False,
    ) -> Array:
        """Draws latents from the prior and decodes them.

        Args:
          num_images: B.
          temperature: multiplies the prior's sigma; one number, or one per group (top-down).
          noise: as in `__call__`.
          train: normalise by the batch, for recalibrating the running statistics.

        Returns: logits (B, H, W, parameters).
        """
        raise NotImplementedError

    def _noise(self, noise: Noise | None, num_images: int) -> Noise:
        """Standard-normal draws, or keys (groups, …) to make them of."""
        groups = self.config.total_groups
        if noise is None:
            return jax.random.split(self.make_rng("sample"), groups)
        if not isinstance(noise, Sequence):
            if noise.shape != (num_images,):
                raise ValueError(f"noise has {noise.shape} keys; expected: {(num_images,)}")
            return jax.vmap(lambda key: jax.random.split(key, groups))(noise).T
        self._check_shapes("noise", noise, num_images)
        return noise

    def _check_images(self, x: Array) -> None:
        if x.ndim != 4 or x.shape[1:] != self.config.image_shape:
            raise ValueError(f"images have shape {x.shape}, not (B, {self.config.image_shape})")

    def _check_shapes(self, name: str, arrays: Sequence[Array], num_images: int) -> None:
        expected = [(num_images, *shape) for shape in self.config.latent_shapes]
        actual = [x.shape for x in arrays]
        if actual != expected:
            raise ValueError(f"{name} has shapes {actual}; expected, top-down: {expected}")


def draw(noise: Array, shape: tuple[int, ...]) -> Array:
    """Standard-normal noise of a group.

    Args:
      noise: (B, h, w, Z), which is returned as it is, or a PRNG key, or (B,) keys, one per image.
      shape: (B, h, w, Z).
    """
    if not jnp.issubdtype(noise.dtype, jax.dtypes.prng_key):
        return noise
    if noise.ndim == 0:
        return jax.random.normal(noise, shape)
    return jax.vmap(lambda key: jax.random.normal(key, shape[1:]))(noise)


def no_noise(config: VAEConfig, num_images: int) -> list[Array]:
    """The noise with which codes are means."""
    return [jnp.zeros((num_images, *shape)) for shape in config.latent_shapes]
