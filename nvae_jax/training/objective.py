"""The terms of the loss: reconstruction, warmed-up and balanced KL, weight of the regularisers."""

from __future__ import annotations

import flax.struct
import jax.numpy as jnp
from jax import Array, lax

from nvae_jax.config.training import BalanceRule, TrainingConfig
from nvae_jax.model.architecture import ModelConfig
from nvae_jax.model.distributions import log_likelihood
from nvae_jax.model.vae import VAEOutput


@flax.struct.dataclass
class ELBOTerms:
    """Terms of the negative ELBO of a batch, in nats; regularisers are not among them.

    reconstruction: (B,) -log p(x | z).
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


def kl_weight(step: Array | int, total_steps: int, warmup: float, constant: float) -> Array:
    """β at a step: 1e-4, then linear to 1 over the part `warmup` of training."""
    ramp = max(warmup * total_steps, 1e-9)  # a warm-up of no length is a jump
    return jnp.clip((step - constant * total_steps) / ramp, 1e-4, 1.0)


def regularization_weight(config: TrainingConfig, beta: Array) -> Array:
    """λ: constant, or geometric from its initial value along the KL warm-up (β from 0 to 1)."""
    final = jnp.log(config.regularization)
    initial = final
    if config.initial_regularization is not None:
        initial = jnp.log(config.initial_regularization)
    return jnp.exp((1.0 - beta) * initial + beta * final)


def balance_targets(config: ModelConfig, rule: BalanceRule) -> Array:
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
        rules[rule](i, scale.groups)
        for i, scale in enumerate(reversed(config.scales))
        for _ in range(scale.groups)
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


def elbo_terms(
    config: ModelConfig, output: VAEOutput, x: Array, beta: Array, targets: Array
) -> ELBOTerms:
    """The terms of a batch x (B, H, W, C) in [0, 1]; see `balance_kl` for `beta` and `targets`."""
    weighted, weights = balance_kl(output.kl, beta, targets)
    return ELBOTerms(
        reconstruction=-log_likelihood(config, output.logits, x),
        kl=output.kl.sum(1),
        weighted_kl=weighted,
        balance=weights,
    )
