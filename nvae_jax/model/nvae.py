"""The deep hierarchical VAE of Vahdat & Kautz (2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from nvae_jax.model.architecture import ModelConfig
from nvae_jax.model.convolution import kernel_and_factor
from nvae_jax.model.decoder import Decoder, GroupOutputs
from nvae_jax.model.encoder import Encoder
from nvae_jax.model.flows import kernel_mask

Noise = Sequence[Array] | Array
Encoded = tuple[Array, list[Array]]  # what `Encoder` returns


@flax.struct.dataclass
class NVAEOutput:
    """One pass through both towers; groups are in top-down order, values in nats.

    logits: (B, H, W, parameters) of the image's distribution, see `image_distribution`.
    log_q: (B,) log posterior density of the drawn latents, over all groups.
    log_p: (B,) their log prior density.
    kl: (B, groups) KL of posterior from prior; with flows its one-draw estimate log q - log p.
    kl_per_channel: (groups, Z) the same by latent channel, mean over the batch.
    kl_per_image_and_channel: (B, groups, Z) what the two before are made of.
    """

    logits: Array
    log_q: Array
    log_p: Array
    kl: Array
    kl_per_channel: Array
    kl_per_image_and_channel: Array


@flax.struct.dataclass
class Latents:
    """Latents of all groups, one array (B, h, w, Z) per group, top-down.

    values: as `NVAE.decode` accepts them.
    noise: the same as standard-normal draws, with which `NVAE.sample_prior` gets the same image at
      temperature 1.
    """

    values: list[Any]
    noise: list[Any]


class NVAE(nn.Module):
    """A model with the variables `params` and `batch_stats`.

    `init` with the RNG streams `params` and `sample`; architectures without batch norm are
    initialised from the data they see there. With `train=True` make `batch_stats` mutable to get
    the updated running statistics.
    """

    config: ModelConfig

    def setup(self) -> None:
        """Makes both towers."""
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)

    def __call__(self, x: Array, train: bool, noise: Noise | None = None) -> NVAEOutput:
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
        """The first half of `__call__`, which has no randomness: the features of images."""
        if x.ndim != 4 or x.shape[1:] != self.config.image_shape:
            raise ValueError(f"images have shape {x.shape}, not (B, {self.config.image_shape})")
        return self.encoder(2.0 * x - 1.0, train)

    def top_down(self, encoded: Encoded, train: bool, noise: Noise | None = None) -> NVAEOutput:
        """The second half of `__call__`: latents from their posterior, and the image."""
        logits, stacks = self._decode(encoded, len(encoded[0]), noise, train=train)
        terms: Any = jax.tree.map(lambda *x: jnp.concatenate(x), *[s.terms for s in stacks])
        return NVAEOutput(
            logits=logits,
            log_q=terms.log_q.sum(0),
            log_p=terms.log_p.sum(0),
            kl=terms.kl.sum(-1).T,
            kl_per_channel=terms.kl.mean(1),
            kl_per_image_and_channel=terms.kl.swapaxes(0, 1),
        )

    def encode(self, x: Array, noise: Noise | None = None) -> Latents:
        """Latents of images, drawn from their posterior; zeros as noise give its means.

        A group's posterior depends on what was drawn in the groups above it, and its mean is taken
        before its flows, which then apply.

        Args and errors as in `__call__`, in evaluation.
        """
        encoded = self.bottom_up(x, False)
        _, stacks = self._decode(encoded, len(x), noise)
        return Latents(
            values=[z for stack in stacks for z in stack.latents],
            noise=[z for stack in stacks for z in stack.noise],
        )

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
        num_images = len(latents[0])
        self._check_shapes("latents", latents, num_images)
        if given is None:
            given, noise = jnp.ones((), bool), latents
        given = jnp.broadcast_to(given, (num_images, self.config.total_groups)).T
        return self._decode(None, num_images, noise, temperature, latents=latents, given=given)[0]

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
          temperature: multiplies the prior's sigma; one number, or one per group, top-down.
          noise: as in `__call__`.
          train: normalise by the batch, for recalibrating the running statistics.

        Returns: logits (B, H, W, parameters).
        """
        return self._decode(None, num_images, noise, temperature, train)[0]

    def _decode(
        self,
        encoded: Encoded | None,
        num_images: int,
        noise: Noise | None,
        temperature: float | Array = 1.0,
        train: bool = False,
        **given: Any,
    ) -> tuple[Array, list[GroupOutputs]]:
        draws = self._noise(noise, num_images)
        temperatures = jnp.broadcast_to(temperature, (self.config.total_groups,))
        return self.decoder(encoded, num_images, draws, temperatures, train, **given)

    def _noise(self, noise: Noise | None, num_images: int) -> Noise:
        groups = self.config.total_groups
        if noise is None:
            return jax.random.split(self.make_rng("sample"), groups)
        if not isinstance(noise, Sequence):
            if noise.shape != (num_images,):
                raise ValueError(f"noise has {noise.shape} keys; expected: {(num_images,)}")
            return jax.vmap(lambda key: jax.random.split(key, groups))(noise).T
        self._check_shapes("noise", noise, num_images)
        return noise

    def _check_shapes(self, name: str, arrays: Sequence[Array], num_images: int) -> None:
        expected = [(num_images, *shape) for shape in self.config.latent_shapes]
        actual = [x.shape for x in arrays]
        if actual != expected:
            raise ValueError(f"{name} has shapes {actual}; expected, top-down: {expected}")


def variable_shapes(config: ModelConfig) -> dict:
    """Shapes and dtypes of a model's `params` and `batch_stats`, without allocating them."""
    images = jax.ShapeDtypeStruct((2, *config.image_shape), jnp.float32)
    return jax.eval_shape(lambda key, x: NVAE(config).init(key, x, True), jax.random.key(0), images)


def effective_kernels(params: dict) -> dict:
    """Every convolution's kernel as it is applied, normalised and masked.

    Returns: nested dicts like `params`, with one kernel (H, W, I, O) in place of a convolution's
      parameters, or (groups, H, W, I, O) where a scale's groups are stacked. Squeeze-excite's dense
      layers are not among them.
    """
    factored = kernels_and_factors(params)
    return unflatten_dict({layer: kernel * factor for layer, (kernel, factor) in factored.items()})


def kernels_and_factors(params: dict) -> dict[tuple[str, ...], tuple[Array, Array]]:
    """`kernel_and_factor` of every convolution, by its path, in the order of the paths."""
    flat = flatten_dict(params)
    factored = {}
    for path, kernel in flat.items():
        layer = path[:-1]
        if path[-1] == "kernel" and kernel.ndim >= 4:
            names = ("kernel", "log_gain")
            weights = {name: flat[*layer, name] for name in names if (*layer, name) in flat}
            factored[layer] = kernel_and_factor(weights, kernel_mask(layer, kernel.shape))
    return dict(sorted(factored.items()))
