"""The deep hierarchical VAE of Vahdat & Kautz (2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from nvae_jax.model.architecture import ModelConfig
from nvae_jax.model.convolution import kernel_and_factor
from nvae_jax.model.decoder import Decoder, GroupOutputs
from nvae_jax.model.encoder import Encoder
from nvae_jax.model.flows import kernel_mask
from nvae_jax.model.vae import VAE, Encoded, Latents, Noise, VAEOutput


class NVAE(VAE):
    """A hierarchy of groups of latents, drawn top-down.

    Architectures without batch norm are initialised from the data that `init` sees.
    """

    config: ModelConfig

    def setup(self) -> None:
        """Makes both towers."""
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)

    def bottom_up(self, x: Array, train: bool) -> Encoded:
        """See `VAE`: the features at the top, and the taps of the groups."""
        self._check_images(x)
        return self.encoder(2.0 * x - 1.0, train)

    def top_down(self, encoded: Encoded, train: bool, noise: Noise | None = None) -> VAEOutput:
        """See `VAE`."""
        logits, stacks = self._decode(encoded, len(encoded[0]), noise, train=train)
        terms: Any = jax.tree.map(lambda *x: jnp.concatenate(x), *[s.terms for s in stacks])
        return VAEOutput(
            logits=logits,
            log_q=terms.log_q.sum(0),
            log_p=terms.log_p.sum(0),
            kl=terms.kl.sum(-1).T,
            kl_per_channel=terms.kl.mean(1),
            kl_per_image_and_channel=terms.kl.swapaxes(0, 1),
        )

    def encode(self, x: Array, noise: Noise | None = None) -> Latents:
        """See `VAE`."""
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
        """See `VAE`."""
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
        """See `VAE`."""
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
