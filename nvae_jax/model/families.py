"""The families of models: what each one is made of.

A new family is a file with a `VAEConfig` and a `VAE`, and an entry of `FAMILIES`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from nvae_jax.errors import require
from nvae_jax.fields import from_mapping
from nvae_jax.model import folding
from nvae_jax.model.architecture import ModelConfig
from nvae_jax.model.conv_vae import ConvVAE, ConvVAEConfig
from nvae_jax.model.nvae import NVAE
from nvae_jax.model.vae import VAE, VAEConfig

DEFAULT = "nvae"


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
      config: its configuration.
      network: its Flax module.
      folded: the module that evaluation uses, for the variables that `fold` returns.
      fold: `(config, variables)` to variables of `folded`; they need not differ.
    """

    config: type[VAEConfig]
    network: Callable[[Any], VAE]
    folded: Callable[[Any], VAE]
    fold: Callable[[Any, Any], dict[str, Any]]


FAMILIES: dict[str, Family] = {
    family.config.name: family
    for family in (
        Family(ModelConfig, NVAE, folding.FoldedNVAE, folding.fold),
        Family(ConvVAEConfig, ConvVAE, ConvVAE, lambda config, variables: variables),
    )
}


def model_config(settings: Mapping[str, Any]) -> VAEConfig:
    """The configuration that a section `model` describes.

    Args:
      settings: its fields, and `name`, a key of `FAMILIES`; without it, NVAE is meant.

    Raises:
      ConfigError: a field is unknown, missing, of the wrong type or impossible.
    """
    fields = dict(settings)
    name = fields.pop("name", DEFAULT)
    require("model.name", name, isinstance(name, str) and name in FAMILIES, ", ".join(FAMILIES))
    return from_mapping(FAMILIES[name].config, fields, "model")


def make_network(config: VAEConfig) -> VAE:
    """The Flax module of a model."""
    return FAMILIES[config.name].network(config)


def make_folded_network(config: VAEConfig) -> VAE:
    """The Flax module that evaluates a model, whose variables are those that `fold` returns."""
    return FAMILIES[config.name].folded(config)


def fold(config: VAEConfig, variables: Any) -> dict[str, Any]:
    """The variables of `make_folded_network` from those of `make_network`."""
    return FAMILIES[config.name].fold(config, variables)


def variable_shapes(config: VAEConfig) -> dict:
    """Shapes and dtypes of a model's `params` and `batch_stats`, without allocating them."""
    images = jax.ShapeDtypeStruct((2, *config.image_shape), jnp.float32)
    init = make_network(config).init
    return jax.eval_shape(lambda key, x: init(key, x, True), jax.random.key(0), images)
