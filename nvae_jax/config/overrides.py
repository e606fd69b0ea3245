"""Single fields of a configuration from the command line: `--config.section.field=value`."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nvae_jax.config.training import TrainingConfig
from nvae_jax.data.loading import LoadingConfig
from nvae_jax.data.sources import DATASETS
from nvae_jax.errors import ConfigError, require
from nvae_jax.fields import names_of, unknown
from nvae_jax.model.families import FAMILIES
from nvae_jax.objectives.table import OBJECTIVES

OVERRIDE = "--config."


def _of_all(classes: Iterable[type]) -> list[str]:
    """The fields of a section whose `name` chooses one of these classes."""
    return ["name", *dict.fromkeys(name for cls in classes for name in names_of(cls))]


# The fields of every section, whatever is chosen by name.
FIELDS: dict[str, list[str]] = {
    "model": _of_all(family.config for family in FAMILIES.values()),
    "data": _of_all(DATASETS.values()),
    "loading": names_of(LoadingConfig),
    "training": names_of(TrainingConfig),
    "objective": _of_all(OBJECTIVES.values()),
}


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """Values by dotted name from arguments `--config.section.field=value`.

    Raises:
      ConfigError: an argument is not of that form, or there is no such field.
    """
    overrides = {}
    for argument in arguments:
        name, equals, text = argument.removeprefix(OVERRIDE).partition("=")
        if not (equals and name.count(".") == 1):
            raise ConfigError(f"{argument!r} is unknown; allowed: {OVERRIDE}section.field=value")
        check_name(name)
        overrides[name] = parse_value(text)
    return overrides


def check_name(name: str) -> None:
    """Checks that there is a field of this dotted name.

    Raises:
      ConfigError: there is none; the message names the closest ones.
    """
    section, _, field = name.partition(".")
    if section not in FIELDS:
        raise unknown("config", section, list(FIELDS))
    if field not in FIELDS[section]:
        raise unknown(f"config.{section}", field, FIELDS[section])


def parse_value(text: str) -> Any:
    """A value in JSON or as a Python literal; any other text is a string."""
    for load in (json.loads, ast.literal_eval):
        try:
            return load(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return text


def with_overrides(settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with other values of some fields, by dotted name.

    Where there are fields of the data among them, the shape and the border of the model's images
    follow from the data anew.

    Raises:
      ConfigError: a section is not one of fields. Unknown names are left for `read_run` to find.
    """
    changed = dict(settings)
    if any(name.startswith("data.") for name in overrides):
        derived = {"model.image_shape": None, "model.border": None}
        overrides = derived | dict(overrides)
    for name, value in overrides.items():
        section, field = name.split(".")
        fields = changed.get(section, {})
        require(section, fields, hasattr(fields, "keys"), "a section of fields")
        changed[section] = {**fields, field: value}
    return changed
