"""Configuration files: dataclasses as `ConfigDict`s, which the command line can change."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from nvae_jax.config.training import TrainingConfig
from nvae_jax.data.loading import LoadingConfig
from nvae_jax.data.sources import DATASETS
from nvae_jax.errors import require
from nvae_jax.model.families import DEFAULT, FAMILIES
from nvae_jax.objectives.table import ELBO, OBJECTIVES

# What follows from the data where it is not given.
_DERIVED = {"image_shape": tuple, "border": int, "likelihood": str}


def run_template(dataset: str, family: str = DEFAULT, objective: str = ELBO.name) -> ConfigDict:
    """All fields of a run on a dataset, with their defaults.

    A field without a default, or whose default is None, is a placeholder, which is None until it is
    set. What the fields mean is said where they are declared: in the family's class (`ModelConfig`
    for NVAE), in the dataset's class (`nvae_jax.data.sources`), in `LoadingConfig`, in
    `TrainingConfig` and in the objective's class (`nvae_jax.objectives`).

    Args:
      dataset: a key of `DATASETS`.
      family: a key of `FAMILIES`.
      objective: a key of `OBJECTIVES`.
    """
    require("data.name", dataset, dataset in DATASETS, ", ".join(sorted(DATASETS)))
    require("model.name", family, family in FAMILIES, ", ".join(FAMILIES))
    require("objective.name", objective, objective in OBJECTIVES, ", ".join(OBJECTIVES))
    config = ConfigDict()
    config.model = ConfigDict({"name": family})
    config.model.update(section(FAMILIES[family].config))
    for name, kind in _DERIVED.items():
        config.model[name] = placeholder(kind)
    config.data = ConfigDict({"name": dataset})
    config.data.update(section(DATASETS[dataset]))
    config.loading = section(LoadingConfig)
    config.training = section(TrainingConfig)
    config.objective = ConfigDict({"name": objective})
    config.objective.update(section(OBJECTIVES[objective]))
    return config


def section(cls: type) -> ConfigDict:
    """The fields of a dataclass as a `ConfigDict`."""
    kinds = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        missing = field.default is dataclasses.MISSING
        value = None if missing else field.default
        values[field.name] = placeholder(_plain(kinds[field.name])) if value is None else value
    return ConfigDict(values)


def _plain(kind: Any) -> type:
    """The type of a field's values, such as str for a Literal and int for `int | None`."""
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _plain(next(option for option in options if option is not types.NoneType))
    return {typing.Literal: str}.get(origin, origin or kind)
