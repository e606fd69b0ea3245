"""Arguments of a run's methods, checked and in the form that evaluation has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from nvae_jax.errors import require
from nvae_jax.evaluation.latents import Space, check_latents
from nvae_jax.model import Latents, VAEConfig


def latent_arrays(
    config: VAEConfig, latents: Latents | Sequence[np.ndarray], space: Space
) -> tuple[list[np.ndarray], bool]:
    """Latents as arrays (N, h, w, Z) per group, and whether they were of one image.

    Raises:
      ConfigError: they are not the model's.
    """
    require("space", space, space in ("latents", "noise"), "latents, noise")
    if isinstance(latents, Latents):
        latents = latents.values if space == "latents" else latents.noise
    arrays = [np.asarray(z) for z in latents]
    if alone := bool(arrays) and all(z.ndim == 3 for z in arrays):
        arrays = [z[None] for z in arrays]
    check_latents(config, arrays, "latents")
    return [z.astype(np.float32, copy=False) for z in arrays], alone


def first_of(tree: Any, alone: bool) -> Any:
    """The outputs of the one image that there was, or of all."""
    return jax.tree.map(lambda x: x[0], tree) if alone else tree


def check_counts(**counts: int) -> None:
    """Raises a ConfigError for a number below 1."""
    for name, count in counts.items():
        require(name, count, count >= 1, "1 or more")


def checked_seed(seed: int) -> int:
    """The seed; a ConfigError if it does not fit 32 bits."""
    require("seed", seed, 0 <= seed < 2**32, "0 to 2**32 - 1")
    return seed
