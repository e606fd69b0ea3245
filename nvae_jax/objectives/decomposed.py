"""The KL in parts, which the aggregate posterior q(z) = Σ_n q(z | x_n) / N separates.

Each with a factor of its own, they are the objectives β-TCVAE and HFVAE.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from nvae_jax.model.distributions import Normal, reconstruction_error
from nvae_jax.model.vae import VAEConfig
from nvae_jax.objectives.base import (
    Objective,
    Setting,
    Turn,
    bound_metrics,
    class_kl_of,
    require_one_code,
    require_several_images,
    run_network,
)


@flax.struct.dataclass
class KLParts:
    """Estimates from one draw per image of the KL to the prior N(0, I), in parts.

    Each is (B,), in nats; any may be negative for one image. The latents j are in groups g.

    mutual_information: log q(z | x) − log q(z), what the code tells of the image's index.
    between_groups: log q(z) − Σ_g log q(z_g), the total correlation of the groups.
    within_groups: Σ_g (log q(z_g) − Σ_{j∈g} log q(z_j)), the total correlations inside groups.
    dimension_wise: Σ_j (log q(z_j) − log p(z_j)), the KL of every latent by itself.
    """

    mutual_information: Array
    between_groups: Array
    within_groups: Array
    dimension_wise: Array

    @property
    def total_correlation(self) -> Array:
        """(B,) log q(z) − Σ_j log q(z_j), whatever the groups."""
        return self.between_groups + self.within_groups

    @property
    def kl(self) -> Array:
        """(B,) the parts' sum: log q(z | x) − log p(z)."""
        return self.mutual_information + self.total_correlation + self.dimension_wise


def kl_parts(
    posterior: Normal,
    z: Array,
    dataset_size: int,
    groups: Sequence[int] | None = None,
    block: int = 256,
) -> KLParts:
    """Splits the KL of a batch by the minibatch-stratified estimate of q(z) and of its marginals.

    For the code z_i of image i of a batch, q(z_i) is estimated by
    q(z_i | x_i) / N + (N − 1) / (N (B − 1)) Σ_{k≠i} q(z_i | x_k), which is unbiased if the other
    images are a random subset of the dataset's others, and exact for the whole dataset (B = N). It
    is the estimator of Esmaeili et al. (arXiv 1804.02086, appendix) and the mean of that of Chen et
    al. (β-TCVAE, arXiv 1802.04942, appendix C), which gives one of the other images an odd weight,
    over the choice of this image. Its logarithm is biased down, by Jensen's inequality, so that the
    mutual information comes out too large in small batches.

    Args:
      posterior: q(z | x) of every image, (B, L), B at least 2.
      z: (B, L) a draw of each.
      dataset_size: N.
      groups: numbers of latents, adding up to L, of the groups of neighbouring latents; by default
        every latent is a group.
      block: images at a time; memory goes with block · B · L.
    """
    batch, latents = z.shape
    sizes = (1,) * latents if groups is None else tuple(groups)
    if batch < 2 or sum(sizes) != latents or min(sizes) < 1:
        raise ValueError(
            f"a batch of {batch} with {latents} latents in groups of {sizes}; "
            "allowed: 2 or more images, and groups of 1 or more that add up to the latents"
        )
    group_of = np.repeat(np.arange(len(sizes)), sizes)
    log_own, log_other = np.log(1 / dataset_size), -np.inf
    if dataset_size > 1:
        log_other = np.log((dataset_size - 1) / (dataset_size * (batch - 1)))

    def grouped(by_latent: Array) -> Array:
        sums = jax.ops.segment_sum(by_latent.T, group_of, len(sizes), indices_are_sorted=True)
        return sums.T

    @jax.checkpoint  # else all blocks' densities would wait for the backward pass
    def split(index_and_z: tuple[Array, Array]) -> KLParts:
        index, z = index_and_z
        by_latent = posterior.log_prob(z)  # of this code under every image's posterior
        by_image = by_latent.sum(1)
        weights = jnp.where(jnp.arange(batch) == index, log_own, log_other).astype(z.dtype)

        def aggregate(log_densities: Array) -> Array:
            axes = (batch,) + (1,) * (log_densities.ndim - 1)
            return jax.nn.logsumexp(log_densities + weights.reshape(axes), axis=0)

        joint, marginals = aggregate(by_image), aggregate(by_latent).sum()
        blocks = marginals if groups is None else aggregate(grouped(by_latent)).sum()
        return KLParts(
            mutual_information=by_image[index] - joint,
            between_groups=joint - blocks,
            within_groups=blocks - marginals,
            dimension_wise=marginals - standard_normal(z).sum(),
        )

    return lax.map(split, (jnp.arange(batch), z), batch_size=min(block, batch))


def decomposed_kl(
    parts: KLParts,
    mutual_information: float = 1.0,
    between_groups: float = 1.0,
    within_groups: float = 1.0,
    dimension_wise: float = 1.0,
) -> Array:
    """The parts of the KL, as `kl_parts` estimates them, with factors; all 1 is the ELBO's.

    β-TCVAE (Chen et al., arXiv 1802.04942, eq. 4) has α for the mutual information, β for the total
    correlation, which without groups is `between_groups`, and γ for the dimension-wise KL. HFVAE
    (Esmaeili et al., arXiv 1804.02086, §3) has α for the mutual information, β for the correlation
    of the groups, and γ for that within them.

    Returns: (B,) nats.
    """
    return (
        mutual_information * parts.mutual_information
        + between_groups * parts.between_groups
        + within_groups * parts.within_groups
        + dimension_wise * parts.dimension_wise
    )


def standard_normal(z: Array) -> Array:
    """Log density of every latent under the prior N(0, 1), in nats; the shape is that of `z`."""
    return Normal(jnp.zeros_like(z), jnp.ones_like(z)).log_prob(z)


@dataclasses.dataclass(frozen=True)
class Decomposed(Objective):
    """The bound with a factor on each part of the KL, see `decomposed_kl`; all 1 is the ELBO.

    The KL of a class, where there is one, is left as it is.
    """

    name: ClassVar[str] = "decomposed"

    mutual_information: float = 1.0  # of the code and the image's index
    between_groups: float = 1.0  # total correlation of the groups; without groups, of all latents
    within_groups: float = 1.0  # total correlation inside the groups
    dimension_wise: float = 1.0  # KL of every latent by itself
    groups: tuple[int, ...] | None = None  # numbers of neighbouring latents; None: each by itself

    def __post_init__(self):
        super().__post_init__()
        factors = "mutual_information", "between_groups", "within_groups", "dimension_wise"
        for name in factors:
            self._require(name, getattr(self, name) >= 0, "0 or more")

    def check(self, model: VAEConfig, images: int) -> None:
        """It is for models with one code, and for two images or more."""
        require_one_code(self, model)
        require_several_images(self, images)
        latents = model.latent_shapes[-1][-1]
        fits = self.groups is None or (
            min(self.groups, default=0) > 0 and sum(self.groups) == latents
        )
        allowed = f"numbers above 0 that add up to the {latents} latents of the model"
        self._require("groups", fits, allowed)

    def turns(self, model: VAEConfig, setting: Setting) -> tuple[Turn, ...]:
        """One loss, of all parameters."""

        def loss(
            params: Any, batch_stats: Any, x: Array, key: Array, weight: Array
        ) -> tuple[Array, Any]:
            output, batch_stats = run_network(model, params, batch_stats, x, key)
            reconstruction = reconstruction_error(model, output, x)
            parts = kl_parts(output.posterior, output.codes, setting.num_images, self.groups)
            kl = decomposed_kl(
                parts,
                self.mutual_information,
                self.between_groups,
                self.within_groups,
                self.dimension_wise,
            )
            value = (reconstruction + weight * (kl + class_kl_of(output))).mean()
            names = "mutual_information", "between_groups", "within_groups", "dimension_wise"
            metrics = {
                **bound_metrics(model, reconstruction, output),
                **{name: getattr(parts, name).mean() for name in names},
                "loss": value,
            }
            return value, (metrics, batch_stats)

        return (Turn(loss),)
