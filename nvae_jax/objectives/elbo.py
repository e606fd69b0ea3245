"""The evidence lower bound, with the warm-up and the balancing of NVAE, and two ways to change it.

A factor on the KL (Higgins et al., *beta-VAE*, ICLR 2017, §2) and free bits (Kingma et al.,
*Improved Variational Inference with Inverse Autoregressive Flow*, arXiv 1606.04934, appendix C.8).
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import flax.struct
import jax.numpy as jnp
from jax import Array, lax

from nvae_jax.model.distributions import reconstruction_error
from nvae_jax.model.vae import VAEConfig, VAEOutput
from nvae_jax.objectives.base import (
    BalanceRule,
    Objective,
    Setting,
    Turn,
    bound_metrics,
    run_network,
)


@flax.struct.dataclass
class ELBOTerms:
    """Terms of the negative ELBO of a batch, in nats; regularisers are not among them.

    reconstruction: (B,) -log p(x | z), see `reconstruction_error`.
    kl: (B,) KL summed over groups, weight 1.
    weighted_kl: (B,) the same with warm-up and balancing, as the loss has it.
    balance: (groups,) the balancing weights, mean 1 while balancing and 1 after.
    """

    reconstruction: Array
    kl: Array
    weighted_kl: Array
    balance: Array

    @property
    def nelbo(self) -> Array:
        """(B,) the negative ELBO."""
        return self.reconstruction + self.kl

    @property
    def loss(self) -> Array:
        """() what training minimises, without the regularisers."""
        return (self.reconstruction + self.weighted_kl).mean()


def balance_targets(config: VAEConfig, rule: BalanceRule) -> Array:
    """α of every group, top-down, (groups,), the smallest 1 (NVAE, appendix A).

    The i-th scale from the coarsest, with G groups, has (2^i)² / G by "square", √(2^i) by "sqrt",
    2^i by "linear" and 1 by "equal".
    """
    rules = {
        "square": lambda i, groups: 4.0**i / groups,
        "sqrt": lambda i, groups: 2.0 ** (i / 2),
        "linear": lambda i, groups: 2.0**i,
        "equal": lambda i, groups: 1.0,
    }
    targets = [
        rules[rule](i, groups)
        for i, groups in enumerate(config.groups_per_scale)
        for _ in range(groups)
    ]
    return jnp.asarray(targets) / min(targets)


def balance_kl(kl: Array, beta: Array, targets: Array) -> tuple[Array, Array]:
    """Weighs groups so that none is switched off early in training.

    Args:
      kl: (B, groups) nats.
      beta: () weight of the KL; at 1 the balancing ends.
      targets: (groups,) α.

    Returns: the weighted sum (B,), and the weights (groups,), without gradient.
    """
    size = jnp.abs(kl).mean(0) + 0.01
    weights = size / targets
    weights = lax.stop_gradient(weights / weights.mean())
    weights = jnp.where(beta < 1.0, weights, 1.0)
    return beta * (kl * weights).sum(1), weights


def free_bits(kl: Array, least: float) -> Array:
    """The KL of every group, with no gain from channels whose mean is below `least`.

    Args:
      kl: (B, groups, Z) nats.
      least: nats per channel.

    Returns: (B, groups).
    """
    return jnp.where(kl.mean(0) < least, least, kl).sum(-1)


def elbo_terms(
    config: VAEConfig,
    output: VAEOutput,
    x: Array,
    beta: Array,
    targets: Array,
    factor: float = 1.0,
    least: float = 0.0,
) -> ELBOTerms:
    """The terms of a batch x (B, H, W, C) in [0, 1].

    See `balance_kl` for `beta` and `targets`, and `Elbo` for `factor` and `least`, which are its
    `beta` and `free_bits`.
    """
    kl = free_bits(output.kl_per_image_and_channel, least) if least else output.kl
    weighted, weights = balance_kl(kl, beta, targets)
    return ELBOTerms(
        reconstruction=reconstruction_error(config, output, x),
        kl=output.kl.sum(1),
        weighted_kl=weighted if factor == 1 else factor * weighted,
        balance=weights,
    )


@dataclasses.dataclass(frozen=True)
class Elbo(Objective):
    """The negative evidence lower bound; its KL is warmed up and balanced as `training` has it."""

    name: ClassVar[str] = "elbo"

    beta: float = 1.0  # factor on the KL, after its warm-up
    free_bits: float = 0.0  # nats of a latent channel's mean KL that cost nothing to use

    def __post_init__(self):
        super().__post_init__()
        self._require("beta", self.beta >= 0, "0 or more")
        self._require("free_bits", self.free_bits >= 0, "0 or more")

    def turns(self, model: VAEConfig, setting: Setting) -> tuple[Turn, ...]:
        """One loss, of all parameters."""
        targets = balance_targets(model, setting.kl_balance)

        def loss(
            params: Any, batch_stats: Any, x: Array, key: Array, weight: Array
        ) -> tuple[Array, Any]:
            output, batch_stats = run_network(model, params, batch_stats, x, key)
            terms = elbo_terms(model, output, x, weight, targets, self.beta, self.free_bits)
            metrics = {
                **bound_metrics(model, terms.reconstruction, output),
                "group_balance": terms.balance,
                "loss": terms.loss,
            }
            return terms.loss, (metrics, batch_stats)

        return (Turn(loss),)
