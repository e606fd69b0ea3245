"""The codes against draws of the prior, told apart by a discriminator: WAE-GAN and AAE."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from nvae_jax.model.distributions import reconstruction_error
from nvae_jax.model.vae import VAEConfig, VAEOutput, no_noise
from nvae_jax.objectives.base import (
    Encoder,
    Objective,
    Setting,
    Turn,
    bound_metrics,
    class_kl_of,
    require_one_code,
    run_network,
)
from nvae_jax.objectives.decomposed import standard_normal


class LatentDiscriminator(nn.Module):
    """The logit that a code is a draw of the prior and no image's: at the optimum log p(z) / q(z).

    Dense layers with ReLU (Tolstikhin et al., arXiv 1711.01558, appendix C, has four of 512).

    widths: of the hidden layers.
    add_log_prior: adds log p(z) of N(0, I), which is known, so that the network only has to learn
      −log q(z) (same paper).
    """

    widths: Sequence[int] = (512, 512, 512, 512)
    add_log_prior: bool = True

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """z: (B, L) → (B,)."""
        x = z
        for number, width in enumerate(self.widths):
            x = nn.relu(nn.Dense(width, name=f"hidden_{number}")(x))
        logit = nn.Dense(1, name="logit")(x)[:, 0]
        return logit + standard_normal(z).sum(1) if self.add_log_prior else logit


def discriminator_loss(prior_logits: Array, code_logits: Array) -> Array:
    """−E log D(z) over the prior − E log (1 − D(z)) over the codes, D the logits' sigmoid.

    WAE's algorithm 1 and the adversarial autoencoder (Makhzani et al., arXiv 1511.05644, §2). The
    codes are constants here: only the discriminator learns from it.

    Args:
      prior_logits: (B,) of draws of the prior.
      code_logits: (B,) of codes, on stopped gradients.

    Returns: (), 2 log 2 where the two cannot be told apart.
    """
    return nn.softplus(-prior_logits).mean() + nn.softplus(code_logits).mean()


def encoder_loss(code_logits: Array, saturating: bool = False) -> Array:
    """What moves the codes to where the discriminator expects draws of the prior.

    −E log D(z), as WAE's algorithm 1 has it, whose gradient stays large while the discriminator
    wins; or, saturating, E log (1 − D(z)), the min-max game of the adversarial autoencoder. The
    discriminator's parameters are constants here.

    Args:
      code_logits: (B,) of codes.
      saturating: which of the two.

    Returns: ().
    """
    if saturating:
        return -nn.softplus(code_logits).mean()
    return nn.softplus(-code_logits).mean()


def estimated_kl(code_logits: Array) -> Array:
    """KL(q(z) ‖ p(z)) as the discriminator sees it: −mean logit of codes, (), nats.

    It is the KL where the discriminator is at its optimum.
    """
    return -code_logits.mean()


@dataclasses.dataclass(frozen=True)
class WaeGan(Objective):
    """WAE-GAN: a discriminator tells codes from draws of the prior (arXiv 1711.01558, algorithm 1).

    In an update the discriminator learns first, then encoder and decoder. The adversarial
    autoencoder (arXiv 1511.05644) is the same with `saturating` and without `add_log_prior`.
    """

    name: ClassVar[str] = "wae_gan"

    divergence_scale: float = 10.0  # λ, of what the discriminator makes the encoder pay
    encoder: Encoder = "deterministic"
    discriminator_widths: tuple[int, ...] = (512, 512, 512, 512)
    discriminator_rate: float = 0.5  # times the learning rate
    add_log_prior: bool = True  # so that the discriminator only has to learn the codes' density
    saturating: bool = False  # the encoder's loss of the min-max game

    def __post_init__(self):
        super().__post_init__()
        self._require("divergence_scale", self.divergence_scale >= 0, "0 or more")
        self._require("discriminator_rate", self.discriminator_rate > 0, "a positive number")
        fits = all(1 <= width <= 2**14 for width in self.discriminator_widths)
        self._require("discriminator_widths", fits, "numbers from 1 to 16384")

    @property
    def has_posterior(self) -> bool:
        """Whether codes are drawn."""
        return self.encoder == "gaussian"

    @property
    def parts(self) -> tuple[Any, ...]:
        """The discriminator's layers."""
        return self.name, self.discriminator_widths

    def check(self, model: VAEConfig, images: int) -> None:
        """It is for models with one code."""
        require_one_code(self, model)

    def init(self, model: VAEConfig, key: Array) -> dict[str, Any]:
        """The discriminator's parameters."""
        codes = jnp.zeros((1, model.latent_shapes[-1][-1]))
        return {"discriminator": self._discriminator.init(key, codes)["params"]}

    @property
    def _discriminator(self) -> LatentDiscriminator:
        return LatentDiscriminator(self.discriminator_widths, self.add_log_prior)

    def turns(self, model: VAEConfig, setting: Setting) -> tuple[Turn, ...]:
        """The discriminator's loss, and that of encoder and decoder."""

        def logits(params: Any, codes: Array) -> Array:
            return self._discriminator.apply({"params": params["discriminator"]}, codes)  # type: ignore[return-value]

        def run(params: Any, batch_stats: Any, x: Array, key: Array) -> tuple[VAEOutput, Any]:
            noise = None if self.has_posterior else no_noise(model, len(x))
            return run_network(model, params, batch_stats, x, key, noise)

        def discriminate(
            params: Any, batch_stats: Any, x: Array, key: Array, weight: Array
        ) -> tuple[Array, Any]:
            del weight
            key_codes, key_prior = jax.random.split(key)
            output, _ = run(params, batch_stats, x, key_codes)
            codes = lax.stop_gradient(output.codes)
            prior = jax.random.normal(key_prior, codes.shape)
            value = discriminator_loss(logits(params, prior), logits(params, codes))
            return value, ({"discriminator_loss": value, "loss": value}, batch_stats)

        def autoencode(
            params: Any, batch_stats: Any, x: Array, key: Array, weight: Array
        ) -> tuple[Array, Any]:
            output, batch_stats = run(params, batch_stats, x, key)
            reconstruction = reconstruction_error(model, output, x)
            of_codes = logits(params, output.codes)
            adversary = encoder_loss(of_codes, self.saturating)
            value = reconstruction.mean() + weight * (
                self.divergence_scale * adversary + jnp.mean(class_kl_of(output))
            )
            metrics = {
                **bound_metrics(model, reconstruction, output, self.has_posterior),
                "encoder_loss": adversary,
                "estimated_kl": estimated_kl(of_codes),
                "loss": value,
            }
            return value, (metrics, batch_stats)

        of_discriminator = Turn(
            discriminate,
            "discriminator",
            ("discriminator",),
            rate=self.discriminator_rate,
            regularize=False,
        )
        return of_discriminator, Turn(autoencode, "autoencoder", ("encoder", "decoder"))
