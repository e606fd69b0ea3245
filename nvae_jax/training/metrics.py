"""What is measured in training, and how it is written down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from nvae_jax.model.distributions import bits_per_dimension

GROUP_METRICS = ("group_kl", "group_active", "group_balance")
NATS_METRICS = ("nelbo", "reconstruction", "kl")  # nats per image, without regularisers


def flatten_metrics(
    metrics: Mapping[str, Any], prefix: str, dimensions: int | None
) -> dict[str, float]:
    """Scalars by name: `prefix/name`, nats also in bits/dim, groups as `prefix/group_kl/03`.

    Without `dimensions`, the model's head is no likelihood.
    """
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        if name in GROUP_METRICS:
            digits = len(str(len(value) - 1))
            for g, x in enumerate(value):
                flat[f"{prefix}/{name}/{g:0{digits}d}"] = float(x)
            continue
        flat[f"{prefix}/{name}"] = float(value)
        if dimensions is not None and name in NATS_METRICS:
            flat[f"{prefix}/{name}_bits_per_dim"] = bits_per_dimension(float(value), dimensions)
    return flat


def mean_metrics(window: list[dict[str, Array]]) -> dict[str, np.ndarray]:
    """Means over steps; waits for the devices."""
    return {name: np.asarray(jnp.stack([m[name] for m in window]).mean(0)) for name in window[0]}
