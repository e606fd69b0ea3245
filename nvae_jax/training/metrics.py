"""What is measured in training, and how it is written down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from nvae_jax.model.distributions import ACTIVE_KL, bits_per_dimension
from nvae_jax.model.vae import VAEOutput
from nvae_jax.training.objective import ELBOTerms

GROUP_METRICS = ("group_kl", "group_active", "group_balance")
NATS_METRICS = ("nelbo", "reconstruction", "kl")  # nats per image, without regularisers


def step_metrics(terms: ELBOTerms, output: VAEOutput) -> dict[str, Array]:
    """Means over a batch.

    Returns: scalars `nelbo`, `reconstruction` and `kl` in nats per image, with the KL at weight 1
      and without regularisers; and by group, top-down, (groups,): `group_kl` in nats,
      `group_active` channels and `group_balance` weights.
    """
    return {
        "nelbo": terms.nelbo.mean(),
        "reconstruction": terms.reconstruction.mean(),
        "kl": terms.kl.mean(),
        "group_kl": output.kl.mean(0),
        "group_active": (output.kl_per_channel > ACTIVE_KL).sum(-1),
        "group_balance": terms.balance,
    }


def flatten_metrics(metrics: Mapping[str, Any], prefix: str, dimensions: int) -> dict[str, float]:
    """Scalars by name: `prefix/name`, nats also in bits/dim, groups as `prefix/group_kl/03`."""
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        if name in GROUP_METRICS:
            digits = len(str(len(value) - 1))
            for g, x in enumerate(value):
                flat[f"{prefix}/{name}/{g:0{digits}d}"] = float(x)
            continue
        flat[f"{prefix}/{name}"] = float(value)
        if name in NATS_METRICS:
            flat[f"{prefix}/{name}_bits_per_dim"] = bits_per_dimension(float(value), dimensions)
    return flat


def mean_metrics(window: list[dict[str, Array]]) -> dict[str, np.ndarray]:
    """Means over steps; waits for the devices."""
    return {name: np.asarray(jnp.stack([m[name] for m in window]).mean(0)) for name in window[0]}
