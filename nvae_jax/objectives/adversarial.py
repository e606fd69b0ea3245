"""The codes against draws of the prior, told apart by a discriminator: WAE-GAN and AAE."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
from jax import Array

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
