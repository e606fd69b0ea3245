"""The optimiser: regularisers, optional clipping, L2, Adamax or Adam, and the learning rate."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from nvae_jax.config.training import TrainingConfig
from nvae_jax.objectives.base import Turn
from nvae_jax.training.regularizers import batch_norm_regularization, spectral_regularization

PENALTIES = ("spectral", "batch_norm")  # the links whose states have a penalty


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
    """The mask of L2: all parameters but the decoder's start in an NVAE that does not use it."""
    decoder = params.get("decoder", {})
    one_group = not any(name.startswith("scale_") for name in decoder)
    mask = jax.tree.map(lambda _: True, params)
    if one_group and "prior_features" in decoder:
        mask["decoder"]["prior_features"] = False
    return mask


def make_optimizer(
    config: TrainingConfig,
    steps_per_epoch: int,
    mesh: Mesh | None = None,
    regularize: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """The links of `make_links`, chained by name.

    `update` receives the gradient of the loss without regularisers, and requires their weight λ as
    the extra argument `regularization`. Adamax has its ε inside the infinity norm, and L2 is
    coupled: it is part of the gradient that Adamax or Adam sees.

    Args:
      config: how to train.
      steps_per_epoch: updates per epoch.
      mesh: devices that share the spectral regularisation's power iteration; None: one device.
      regularize: whether the parameters are of a network with regularisers.
    """
    return optax.named_chain(*make_links(config, steps_per_epoch, mesh, regularize).items())


_OPTIMIZERS = {
    "adamax": optax.scale_by_adamax(b1=0.9, b2=0.999, eps=1e-3),
    "adam": optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8),
}


def make_links(
    config: TrainingConfig,
    steps_per_epoch: int,
    mesh: Mesh | None = None,
    regularize: bool = True,
) -> dict[str, optax.GradientTransformation]:
    """The optimiser's transformations by name, in their order (NVAE, §3.2)."""
    links = {
        # Not by the run's seed, which would be a constant of the program; any start will do.
        "spectral": spectral_regularization(jax.random.key(0), mesh),
        "batch_norm": batch_norm_regularization(),
        "clip": optax.clip_by_global_norm(config.gradient_clip or 0.0),
        "weight_decay": optax.add_decayed_weights(config.weight_decay, mask=_decayed),
        config.optimizer: _OPTIMIZERS[config.optimizer],
        "learning_rate": optax.scale_by_learning_rate(
            learning_rate_schedule(config, steps_per_epoch)
        ),
    }
    if config.gradient_clip is None:
        del links["clip"]
    if not (regularize and config.regularization):
        del links["spectral"], links["batch_norm"]
    return links


class TurnsOptimizer:
    """The optimisers of an objective's turns; their states are one dict.

    Its keys are the names of `make_links`; where there are several turns, `<turn>_<link>`.

    Args:
      turns: of the objective.
      config: how to train.
      steps_per_epoch: updates per epoch.
      mesh: see `make_optimizer`.
    """

    def __init__(
        self,
        turns: Sequence[Turn],
        config: TrainingConfig,
        steps_per_epoch: int,
        mesh: Mesh | None = None,
    ):
        self._turns = turns
        self._links = [make_links(config, steps_per_epoch, mesh, turn.regularize) for turn in turns]
        self._chains = [optax.named_chain(*links.items()) for links in self._links]

    def init(self, params: Any) -> Any:
        """The states of fresh parameters."""
        states: OrderedDict[str, Any] = OrderedDict()
        for turn, chain in zip(self._turns, self._chains, strict=True):
            fresh = chain.init(moved(turn, params)[0])
            states |= {_name(turn, link): state for link, state in fresh.items()}
        return states

    def update(
        self, number: int, gradient: Any, states: Any, params: Any, regularization: Array
    ) -> tuple[Any, Any, dict[str, Array]]:
        """The updates of turn `number`.

        Args:
          number: of the turn, from 0.
          gradient: of its loss by the parameters that it moves.
          states: of all turns.
          params: that it moves.
          regularization: λ.

        Returns: the updates, the states of all turns, and the penalties.
        """
        turn, chain = self._turns[number], self._chains[number]
        names = {link: _name(turn, link) for link in self._links[number]}
        old = OrderedDict((link, states[name]) for link, name in names.items())
        updates, new = chain.update(gradient, old, params, regularization=regularization)
        changed = {names[link]: state for link, state in new.items()}
        states = OrderedDict((name, changed.get(name, state)) for name, state in states.items())
        penalties = {link: new[link].penalty for link in PENALTIES if link in new}
        scaled = jax.tree.map(lambda u: turn.rate * u, updates) if turn.rate != 1 else updates
        return scaled, states, penalties


def moved(turn: Turn, params: Any) -> tuple[Any, Any]:
    """The parameters that a turn moves, and the others."""
    if turn.moves is None:
        return params, {}
    parts: tuple[dict[str, Any], dict[str, Any]] = {}, {}
    for name, module in params.items():
        parts[name not in turn.moves][name] = module
    return parts


def _name(turn: Turn, link: str) -> str:
    return f"{turn.name}_{link}" if turn.name else link
