"""What all objectives have in common: a configuration, and the losses of an update."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from jax import Array

from nvae_jax.errors import require
from nvae_jax.fields import require_literals
from nvae_jax.model import mixture
from nvae_jax.model.distributions import ACTIVE_KL
from nvae_jax.model.families import make_network
from nvae_jax.model.vae import Noise, VAEConfig, VAEOutput

Encoder = Literal["gaussian", "deterministic"]  # whether codes are drawn, or are their means
BalanceRule = Literal["square", "sqrt", "linear", "equal"]

# `(params, batch_stats, x, key, weight) → (loss, (metrics, batch_stats))`: x (B, H, W, C) in [0, 1]
# are a batch's images, and weight () is the KL's in its warm-up. The loss is a mean over images,
# without regularisers; the statistics that come back are the updated running ones.
Loss = Callable[[Any, Any, Array, Array, Array], tuple[Array, Any]]


@dataclasses.dataclass(frozen=True)
class Setting:
    """What an objective is told of a run.

    Attributes:
      kl_balance: how groups are weighted while the KL warms up.
      num_images: images per epoch.
    """

    kl_balance: BalanceRule = "square"
    num_images: int = 1


@dataclasses.dataclass(frozen=True)
class Turn:
    """One of the losses that an update minimises in turn, each at the parameters that are new.

    Attributes:
      loss: a `Loss`.
      name: of the optimiser's state; empty if there is no other turn.
      moves: the modules whose parameters it moves, names at the top of `params`; None: all.
      rate: times the learning rate of the run.
      regularize: whether the regularisers of the network act on these modules.
    """

    loss: Loss
    name: str = ""
    moves: tuple[str, ...] | None = None
    rate: float = 1.0
    regularize: bool = True


@dataclasses.dataclass(frozen=True)
class Objective:
    """The section `objective` of a configuration.

    Raises:
      ConfigError: a value is impossible; the message names the field.
    """

    name: ClassVar[str]  # a key of OBJECTIVES

    def __post_init__(self):
        require_literals(self, "objective.")

    def _require(self, name: str, condition: bool, allowed: str):
        require(f"objective.{name}", getattr(self, name), condition, allowed)

    @property
    def has_posterior(self) -> bool:
        """Whether codes are drawn from a density given the image, which a bound requires."""
        return True

    @property
    def parts(self) -> tuple[Any, ...]:
        """What decides which turns there are, and the shapes of parameters beside the network's."""
        return ()

    def check(self, model: VAEConfig, images: int) -> None:
        """Checks that this objective can train a model.

        Args:
          model: the network's configuration.
          images: in a part of a batch.

        Raises:
          ConfigError: it cannot; the message says why.
        """

    def init(self, model: VAEConfig, key: Array) -> dict[str, Any]:
        """Parameters that the objective has beside the network's, by module."""
        del model, key
        return {}

    def turns(self, model: VAEConfig, setting: Setting) -> tuple[Turn, ...]:
        """The losses of an update, in their order."""
        raise NotImplementedError


def require_one_code(objective: Objective, model: VAEConfig) -> None:
    """Checks that a model has one code per image, independent under the prior.

    Raises:
      ConfigError: it has a hierarchy of groups.
    """
    require(
        "objective.name",
        objective.name,
        model.name == "conv_vae",
        f"elbo with model.name = {model.name!r}, because the prior of its groups depends on the "
        "groups above them, so that there is no one code to compare with a prior",
    )


def require_several_images(objective: Objective, images: int) -> None:
    """Checks that codes have others to be compared with.

    Raises:
      ConfigError: an update, or a part of it, is of a single image.
    """
    allowed = f"elbo, or parts of 2 or more images: training.batch_size leaves {images}"
    require("objective.name", objective.name, images > 1, allowed)


def class_kl_of(output: VAEOutput) -> Array | float:
    """The KL of the classes, (B,) nats; 0 without classes."""
    return 0.0 if output.class_logits is None else mixture.class_kl(output.class_logits)


def run_network(
    model: VAEConfig,
    params: Any,
    batch_stats: Any,
    x: Array,
    key: Array,
    noise: Noise | None = None,
) -> tuple[VAEOutput, Any]:
    """A pass through the network in training.

    Args:
      model: the network's configuration.
      params: the network's parameters; others are ignored.
      batch_stats: running statistics.
      x: (B, H, W, C) in [0, 1].
      key: of the draws.
      noise: in place of them, see `VAE.__call__`.

    Returns: the output, and the updated running statistics.
    """
    output, updated = make_network(model).apply(
        {"params": params, "batch_stats": batch_stats},
        x,
        train=True,
        noise=noise,
        rngs={"sample": key},
        mutable=["batch_stats"],
    )
    return output, updated.get("batch_stats", {})


def bound_metrics(
    model: VAEConfig, reconstruction: Array, output: VAEOutput, has_posterior: bool = True
) -> Mapping[str, Array]:
    """What every objective measures of a batch, means over its images.

    Args:
      model: the network's configuration.
      reconstruction: (B,), see `reconstruction_error`.
      output: of the network.
      has_posterior: see `Objective`.

    Returns: the scalar `reconstruction`; of a posterior the scalars `kl`, at weight 1, and `nelbo`,
      their sum, where the first is in nats, too; and by group, top-down, (groups,): `group_kl` in
      nats and `group_active` channels.
    """
    if not has_posterior:
        return {"reconstruction": reconstruction.mean()}
    kl = output.kl.sum(1)
    metrics = {
        "reconstruction": reconstruction.mean(),
        "kl": kl.mean(),
        "group_kl": output.kl.mean(0),
        "group_active": (output.kl_per_channel > ACTIVE_KL).sum(-1),
    }
    if model.has_likelihood:
        metrics["nelbo"] = (reconstruction + kl).mean()
    return metrics
