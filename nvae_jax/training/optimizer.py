"""The optimiser: regularisers, optional clipping, L2, Adamax and the learning rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from nvae_jax.config.training import TrainingConfig
from nvae_jax.training.regularizers import batch_norm_regularization, spectral_regularization


def learning_rate_schedule(
    config: TrainingConfig, steps_per_epoch: int
) -> Callable[[Array | int], Array]:
    """The learning rate as a function of the step, counted from 0.

    It rises linearly from 0 over the warm-up. The epoch after that keeps the warm-up's last value,
    and then a cosine, constant within an epoch, leads to `min_learning_rate` in the last.
    """
    warmup = config.warmup_epochs * steps_per_epoch
    peak = config.learning_rate * ((warmup - 1) / warmup if warmup else 1.0)
    lowest = config.min_learning_rate
    span = max(config.epochs - config.warmup_epochs - 1, 1)

    def schedule(step: Array | int) -> Array:
        step = jnp.asarray(step)
        epoch = step // steps_per_epoch - config.warmup_epochs
        decayed = lowest + (peak - lowest) * (1 + jnp.cos(jnp.pi * epoch / span)) / 2
        rising = config.learning_rate * step / max(warmup, 1)
        return jnp.where(step < warmup, rising, decayed)

    return schedule


def _decayed(params: Any) -> Any:
    """The mask of L2: all parameters but the decoder's start in a model that does not use it."""
    one_group = not any(name.startswith("scale_") for name in params["decoder"])
    mask = jax.tree.map(lambda _: True, params)
    if one_group:
        mask["decoder"]["prior_features"] = False
    return mask


def make_optimizer(
    config: TrainingConfig, steps_per_epoch: int, mesh: Mesh | None = None
) -> optax.GradientTransformationExtraArgs:
    """The links of `make_links`, chained by name.

    `update` receives the gradient of the loss without regularisers, and requires their weight λ as
    the extra argument `regularization`. Adamax has its ε inside the infinity norm, and L2 is
    coupled: it is part of the gradient that Adamax sees.

    Args:
      config: how to train.
      steps_per_epoch: updates per epoch.
      mesh: devices that share the spectral regularisation's power iteration; None: one device.
    """
    return optax.named_chain(*make_links(config, steps_per_epoch, mesh).items())


def make_links(
    config: TrainingConfig, steps_per_epoch: int, mesh: Mesh | None = None
) -> dict[str, optax.GradientTransformation]:
    """The optimiser's transformations by name, in their order (NVAE, §3.2)."""
    links = {
        # Not by the run's seed, which would be a constant of the program; any start will do.
        "spectral": spectral_regularization(jax.random.key(0), mesh),
        "batch_norm": batch_norm_regularization(),
        "clip": optax.clip_by_global_norm(config.gradient_clip or 0.0),
        "weight_decay": optax.add_decayed_weights(config.weight_decay, mask=_decayed),
        "adamax": optax.scale_by_adamax(b1=0.9, b2=0.999, eps=1e-3),
        "learning_rate": optax.scale_by_learning_rate(
            learning_rate_schedule(config, steps_per_epoch)
        ),
    }
    if config.gradient_clip is None:
        del links["clip"]
    return links
