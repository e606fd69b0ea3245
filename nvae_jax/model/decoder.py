"""The top-down tower: prior, posterior and the image's parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from nvae_jax.model.architecture import ModelConfig
from nvae_jax.model.cells import Resize
from nvae_jax.model.convolution import Conv
from nvae_jax.model.distributions import Normal, num_image_parameters
from nvae_jax.model.flows import FlowPair
from nvae_jax.model.tower import GROUP_INPUT, make_cell, scan_groups
from nvae_jax.model.vae import draw

Raw = tuple[Array, Array]  # means and log-sigmas as convolutions return them


@flax.struct.dataclass
class GroupInputs:
    """What one group, or a stack of groups on a leading axis, needs beside the features.

    tap: (B, h, w, C_enc) features of the image; None: sample from the prior.
    noise: (B, h, w, Z) standard normal, or a PRNG key to draw it with, or (B,) keys.
    temperature: multiplies the prior's sigma when sampling from it.
    latents: (B, h, w, Z) to take in place of the prior's sample where `given` is true.
    given: (B,) bool.
    """

    tap: Array | None
    noise: Array
    temperature: Array
    latents: Array | None = None
    given: Array | None = None


@flax.struct.dataclass
class GroupTerms:
    """The terms of the ELBO that one group contributes, in nats: (B, Z), (B,), (B,)."""

    kl: Array
    log_q: Array
    log_p: Array


@flax.struct.dataclass
class GroupOutputs:
    """What one group, or a stack of groups on a leading axis, has drawn.

    latents: (B, h, w, Z), as the features take them in.
    noise: (B, h, w, Z), the standard-normal draw that the prior turns into these latents.
    terms: of the ELBO; None if the group had no tap.
    """

    latents: Array
    noise: Array
    terms: GroupTerms | None


class LatentGroup(nn.Module):
    """One group: features of the latents so far → prior, posterior, a draw, and new features.

    The first group of a model has a standard prior and no cells, and its posterior sees the
    image's features alone.
    """

    config: ModelConfig
    features: int
    first: bool = False

    def setup(self) -> None:
        """Makes the cells, the convolutions and the flows."""
        config = self.config
        dtype = jnp.dtype(config.dtype)
        if not self.first:
            self.cells = [
                make_cell(config, config.cells.decoder, in_group=True, name=f"cell_{i}")
                for i in range(config.decoder_cells)
            ]
            self.prior_conv = Conv(2 * config.num_latents, dtype=dtype, name="prior")
        self.posterior_conv = Conv(2 * config.num_latents, 3, dtype=dtype, name="posterior")
        self.flows = [
            FlowPair(config.flow, dtype, name=f"flow_{i}") for i in range(config.num_flows)
        ]
        self.combine_conv = Conv(self.features, dtype=dtype, name="combine")

    def __call__(self, h: Array, inputs: GroupInputs, train: bool) -> tuple[Array, GroupOutputs]:
        """h: (B, h, w, C) → (B, h, w, features)."""
        h = checkpoint_name(h, GROUP_INPUT)
        h, prior_raw = self.prior(h, train)
        prior = Normal.from_raw(*prior_raw)
        noise = draw(inputs.noise, (*h.shape[:-1], self.config.num_latents))
        terms = None
        if inputs.tap is None:
            z = Normal.from_raw(*prior_raw, temperature=inputs.temperature).sample(noise)
            if inputs.latents is not None and inputs.given is not None:
                z = jnp.where(inputs.given[:, None, None, None], inputs.latents, z)
        else:
            z, terms = self._draw_posterior(h, inputs.tap, noise, prior_raw)
        return self.combine(h, z), GroupOutputs(z, prior.noise(z), terms)

    def prior(self, h: Array, train: bool) -> tuple[Array, Raw]:
        """The features that this group works with, and its prior's raw parameters.

        h: (B, h, w, C) → the same shape; raw (B, h, w, Z), or () in the first group.
        """
        if self.first:
            return h, (jnp.zeros(()), jnp.zeros(()))
        for cell in self.cells:
            h = cell(h, train)
        return h, _split(self.prior_conv(nn.elu(h)))

    @nn.compact
    def posterior(self, h: Array, tap: Array, prior_raw: Raw) -> Raw:
        """The posterior's raw parameters, (B, h, w, Z), before flows; h is what `prior` returns."""
        config = self.config
        if not self.first:
            dtype = jnp.dtype(config.dtype)
            tap += Conv(tap.shape[-1], dtype=dtype, name="combine_encoder")(h)
        raw = _split(self.posterior_conv(tap))
        if config.residual_posterior:
            raw = (raw[0] + prior_raw[0], raw[1] + prior_raw[1])
        return raw

    def combine(self, h: Array, z: Array) -> Array:
        """Takes latents in: (B, h, w, C) as `prior` returns it, (B, h, w, Z) → (…, features)."""
        combined = jnp.concatenate([h, z.astype(jnp.dtype(self.config.dtype))], axis=-1)
        return self.combine_conv(combined)

    def _draw_posterior(self, h, tap, noise, prior_raw):
        prior = Normal.from_raw(*prior_raw)
        posterior = Normal.from_raw(*self.posterior(h, tap, prior_raw))
        z = posterior.sample(noise)
        log_q = posterior.log_prob(z)
        for flow in self.flows:
            z, log_det = flow(z)
            log_q -= log_det
        log_p = prior.log_prob(z)
        kl = log_q - log_p if self.flows else posterior.kl(prior)
        return z, GroupTerms(kl.sum((1, 2)), log_q.sum((1, 2, 3)), log_p.sum((1, 2, 3)))


def _split(x: Array) -> Raw:
    mean, log_sigma = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return mean, log_sigma


class Decoder(nn.Module):
    """From draws of all groups, coarsest first, to the parameters of the image's distribution."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        encoded: tuple[Array, list[Array]] | None,
        num_images: int,
        noise: Array | Sequence[Array],
        temperatures: Array,
        train: bool,
        latents: Sequence[Array] | None = None,
        given: Array | None = None,
    ) -> tuple[Array, list[GroupOutputs]]:
        """Runs the tower from its start to the image.

        Args:
          encoded: what `Encoder` returns; None: sample from the prior.
          num_images: B.
          noise: one standard-normal (B, h, w, Z) per group, top-down, or PRNG keys: one per group,
            or (groups, B).
          temperatures: (groups,), of the prior, when sampling from it.
          train: normalise by the batch.
          latents: (B, h, w, Z) per group, top-down, in place of the prior's where `given` is true.
          given: (groups, B) bool.

        Returns: (B, H, W, parameters) float32, and what the groups have drawn, in stacks of groups
          of one size, top-down.
        """
        config = self.config
        top = config.scales[-1]
        h = self.start(num_images)

        def inputs(start: int, stop: int, tap: Array | None) -> GroupInputs:
            def some(values: Any) -> Any:
                part = None if values is None else values[start:stop]
                return jnp.stack(part) if isinstance(part, Sequence) else part

            return GroupInputs(tap, *map(some, (noise, temperatures, latents, given)))

        top_tap, taps = encoded or (None, None)
        first = jax.tree.map(lambda x: x[0], inputs(0, 1, None)).replace(tap=top_tap)
        h, outputs = LatentGroup(config, top.decoder_channels, first=True, name="first")(
            h, first, train
        )
        all_outputs = [jax.tree.map(lambda x: x[None], outputs)]
        done = 1
        for s, scale in reversed(list(enumerate(config.scales))):
            groups = scale.groups
            if scale is top:
                groups -= 1
            else:
                h = self.enlarge(h, s, train)
            if groups:
                # The encoder's groups run bottom-up, and the last one's tap is `top`.
                tap = None if taps is None else taps[s][:groups][::-1]
                scan = scan_groups(config, LatentGroup, groups)
                stack = scan(config, scale.decoder_channels, name=f"scale_{s}")
                h, outputs = stack(h, inputs(done, done + groups, tap), train)
                all_outputs.append(outputs)
                done += groups

        return self.image(h, train), all_outputs

    def start(self, num_images: int) -> Array:
        """The features of the first group, (B, h, w, C)."""
        config = self.config
        top = config.scales[-1]
        shape = (top.height, top.width, top.decoder_channels)
        prior_features = self.param("prior_features", nn.initializers.uniform(1.0), shape)
        if config.one_group:
            # A plain VAE starts from its latents alone; the parameter is there, unused, because
            # the original's checkpoints hold it.
            prior_features = prior_features[..., :0]
        h = jnp.broadcast_to(prior_features, (num_images, *prior_features.shape))
        return h.astype(jnp.dtype(config.dtype))

    def enlarge(self, h: Array, scale: int, train: bool) -> Array:
        """From the features of the scale above to those of scale number `scale`."""
        cell = make_cell(self.config, self.config.cells.decoder, "up", name=f"up_{scale}")
        return cell(h, train)

    def image(self, h: Array, train: bool) -> Array:
        """From the features after the last group to the image's parameters, in float32."""
        config = self.config
        for block in range(config.num_blocks):
            for i in range(config.postprocess_cells):
                resize: Resize = "up" if i == 0 else "same"
                name = f"postprocess_{block}_{i}"
                h = make_cell(config, config.cells.postprocess, resize, name=name)(h, train)
        dtype = jnp.dtype(config.dtype)
        conv = Conv(num_image_parameters(config), 3, dtype=dtype, name="image")
        return conv(nn.elu(h)).astype(jnp.float32)
