"""The deep hierarchical VAE of Vahdat & Kautz (2020)."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from nvae_jax.model.architecture import ModelConfig
from nvae_jax.model.convolution import effective_kernel
from nvae_jax.model.decoder import Decoder
from nvae_jax.model.encoder import Encoder
from nvae_jax.model.flows import kernel_mask

Noise = Sequence[Array]


@flax.struct.dataclass
class NVAEOutput:
    """One pass through both towers; groups are in top-down order, values in nats.

    logits: (B, H, W, parameters) of the image's distribution, see `image_distribution`.
    log_q: (B,) log posterior density of the drawn latents, over all groups.
    log_p: (B,) their log prior density.
    kl: (B, groups) KL of posterior from prior; with flows its one-draw estimate log q - log p.
    kl_per_channel: (groups, Z) the same by latent channel, mean over the batch.
    """

    logits: Array
    log_q: Array
    log_p: Array
    kl: Array
    kl_per_channel: Array


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
          noise: standard-normal draws (B, h, w, Z), one a group, top-down; without them they come
            from the RNG stream `sample`.

        Raises: ValueError if the shape of `x` or of the noise is not the configuration's.
        """
        if x.ndim != 4 or x.shape[1:] != self.config.image_shape:
            raise ValueError(f"images have shape {x.shape}, not (B, {self.config.image_shape})")
        num_images = x.shape[0]
        encoded = self.encoder(2.0 * x - 1.0, train)
        ones = jnp.ones((self.config.total_groups,))
        draws = self._noise(noise, num_images)
        logits, terms = self.decoder(encoded, num_images, draws, ones, train)
        assert terms is not None
        return NVAEOutput(
            logits=logits,
            log_q=terms.log_q.sum(0),
            log_p=terms.log_p.sum(0),
            kl=terms.kl.sum(-1).T,
            kl_per_channel=terms.kl.mean(1),
        )

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
          temperature: multiplies the prior's sigma; one number, or one a group (top-down).
          noise: as in `__call__`.
          train: normalise by the batch, for recalibrating the running statistics.

        Returns: logits (B, H, W, parameters).
        """
        temperatures = jnp.broadcast_to(temperature, (self.config.total_groups,))
        draws = self._noise(noise, num_images)
        return self.decoder(None, num_images, draws, temperatures, train)[0]

    def _noise(self, noise: Noise | None, num_images: int) -> Array | Noise:
        if noise is None:
            return jax.random.split(self.make_rng("sample"), self.config.total_groups)
        expected = [(num_images, *shape) for shape in self.config.latent_shapes]
        actual = [x.shape for x in noise]
        if actual != expected:
            raise ValueError(f"noise has shapes {actual}; expected, top-down: {expected}")
        return noise


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
    flat = flatten_dict(params)
    kernels = {}
    for path, kernel in flat.items():
        layer = path[:-1]
        if path[-1] == "kernel" and kernel.ndim >= 4:
            names = ("kernel", "log_gain")
            weights = {name: flat[*layer, name] for name in names if (*layer, name) in flat}
            kernels[layer] = effective_kernel(weights, kernel_mask(layer, kernel.shape))
    return unflatten_dict(kernels)
