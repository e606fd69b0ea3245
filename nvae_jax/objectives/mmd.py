"""The KL partly or wholly replaced by the discrepancy of all codes from the prior.

The maximum mean discrepancy (Gretton et al., *A Kernel Two-Sample Test*, JMLR 2012, §2.2).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array, lax

from nvae_jax.model.distributions import reconstruction_error
from nvae_jax.model.vae import VAEConfig, no_noise
from nvae_jax.objectives.base import (
    Encoder,
    Objective,
    Setting,
    Turn,
    bound_metrics,
    class_kl_of,
    require_one_code,
    require_several_images,
    run_network,
)

KernelName = Literal["rbf", "imq"]

SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


def squared_mmd(
    x: Array,
    y: Array,
    kernel: KernelName = "imq",
    scales: Sequence[float] = SCALES,
    block: int = 256,
) -> Array:
    """The unbiased estimate of MMD² from two samples; it may be negative.

    Σ_{i≠j} k(x_i, x_j) / (N (N − 1)) + Σ_{i≠j} k(y_i, y_j) / (M (M − 1)) − 2 mean k(x_i, y_j).

    The kernels, of the squared distance d², are sums over the scales s, with C = 2 L s, which for
    s = 1 is the mean d² of two draws of N(0, I):
      "rbf": Σ_s exp(−d² / C).
      "imq": Σ_s C / (C + d²), the inverse multiquadratic, whose tails are heavy, so that far
        outliers have a gradient, too (WAE, arXiv 1711.01558, §4).

    Args:
      x: (N, L), N at least 2.
      y: (M, L), M at least 2.
      kernel: see above.
      scales: above 0; the default ones are those of WAE's experiments.
      block: rows of `x` or `y` at a time; memory goes with block times the larger of N and M.

    Returns: (), at most twice the number of scales.
    """
    if kernel not in get_args(KernelName) or min(len(x), len(y)) < 2:
        raise ValueError(
            f"kernel {kernel!r} for {len(x)} and {len(y)} codes; allowed: "
            f"{', '.join(get_args(KernelName))} for 2 or more"
        )
    sizes = 2.0 * x.shape[1] * jnp.asarray(scales, x.dtype)[:, None]

    def similarity(a: Array, b: Array) -> Array:
        """Of one code a (L,) to codes b (K, L): (K,)."""
        distance = jnp.square(a - b).sum(-1)
        if kernel == "rbf":
            return jnp.exp(-distance / sizes).sum(0)
        return (sizes / (sizes + distance)).sum(0)

    def total(a: Array, b: Array, same: bool) -> Array:
        @jax.checkpoint  # else all blocks' distances would wait for the backward pass
        def row(index_and_code: tuple[Array, Array]) -> Array:
            index, code = index_and_code
            similarities = similarity(code, b)
            if same:
                similarities = jnp.where(jnp.arange(len(b)) == index, 0.0, similarities)
            return similarities.sum()

        return lax.map(row, (jnp.arange(len(a)), a), batch_size=min(block, len(a))).sum()

    n, m = len(x), len(y)
    within = total(x, x, True) / (n * (n - 1)) + total(y, y, True) / (m * (m - 1))
    return within - 2.0 * total(x, y, False) / (n * m)


def info_vae_penalty(
    kl: Array, discrepancy: Array, information_preference: float, divergence_scale: float
) -> Array:
    """What InfoVAE adds to the reconstruction's loss (Zhao et al., arXiv 1706.02262, §4, eq. 6).

    (1 − α) KL(q(z | x) ‖ p(z)) + (α + λ − 1) D(q(z) ‖ p(z)): of the KL's two parts, the mutual
    information of image and code and the divergence of q(z) from the prior, the first counts
    1 − α times and the second λ times, partly as D. Special cases are the ELBO (α = 0, λ = 1),
    MMD-VAE (α = 1) and, with a random or a deterministic encoder, WAE-MMD (α = 1; Tolstikhin et
    al., arXiv 1711.01558, algorithm 2, whose λ is this one).

    Args:
      kl: (B,) nats.
      discrepancy: () D, for instance `squared_mmd` of a draw of every code and draws of the prior.
      information_preference: α, at most 1: 1 leaves out the pull of every single code to the prior.
      divergence_scale: λ, at least 1 − α.

    Returns: (B,).
    """
    pull = (1.0 - information_preference) * kl
    return pull + (information_preference + divergence_scale - 1.0) * discrepancy


@dataclasses.dataclass(frozen=True)
class Mmd(Objective):
    """InfoVAE with the maximum mean discrepancy, and WAE-MMD, see `info_vae_penalty`.

    The defaults are those of MMD-VAE; WAE-MMD is the same with an encoder that is deterministic,
    which has no KL, so that there is no bound.
    """

    name: ClassVar[str] = "mmd"

    information_preference: float = 1.0  # α: 1 leaves out the pull of every code to the prior
    divergence_scale: float = 100.0  # λ, of the discrepancy
    kernel: KernelName = "imq"
    scales: tuple[float, ...] = SCALES  # of the kernel, which is a sum over them
    encoder: Encoder = "gaussian"

    def __post_init__(self):
        super().__post_init__()
        self._require("information_preference", self.information_preference <= 1, "at most 1")
        least = 1 - self.information_preference
        self._require("divergence_scale", self.divergence_scale >= least, f"{least} or more")
        positive = len(self.scales) > 0 and min(self.scales) > 0
        self._require("scales", positive, "numbers above 0")
        plain = self.encoder == "gaussian" or self.information_preference == 1
        allowed = (
            "gaussian, unless objective.information_preference is 1: without it there is no KL"
        )
        self._require("encoder", plain, allowed)

    @property
    def has_posterior(self) -> bool:
        """Whether codes are drawn."""
        return self.encoder == "gaussian"

    def check(self, model: VAEConfig, images: int) -> None:
        """It is for models with one code, and for two images or more."""
        require_one_code(self, model)
        require_several_images(self, images)

    def turns(self, model: VAEConfig, setting: Setting) -> tuple[Turn, ...]:
        """One loss, of all parameters."""

        def loss(
            params: Any, batch_stats: Any, x: Array, key: Array, weight: Array
        ) -> tuple[Array, Any]:
            key_codes, key_prior = jax.random.split(key)
            noise = None if self.has_posterior else no_noise(model, len(x))
            output, batch_stats = run_network(model, params, batch_stats, x, key_codes, noise)
            reconstruction = reconstruction_error(model, output, x)
            prior = jax.random.normal(key_prior, output.codes.shape)
            discrepancy = squared_mmd(output.codes, prior, self.kernel, self.scales)
            kl = output.kl[:, -1]
            if not self.has_posterior:
                kl = jnp.zeros_like(kl)
            penalty = info_vae_penalty(
                kl, discrepancy, self.information_preference, self.divergence_scale
            )
            value = (reconstruction + weight * (penalty + class_kl_of(output))).mean()
            metrics = {
                **bound_metrics(model, reconstruction, output, self.has_posterior),
                "mmd": discrepancy,
                "loss": value,
            }
            return value, (metrics, batch_stats)

        return (Turn(loss),)
