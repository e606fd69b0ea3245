"""Single fields of a configuration from the command line: `--config.section.field=value`."""

from __future__ import annotations

import ast
import json
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from nvae_jax.config.training import TrainingConfig
from nvae_jax.data.loading import LoadingConfig
from nvae_jax.data.sources import DATASETS
from nvae_jax.errors import ConfigError, require
from nvae_jax.fields import names_of, unknown
from nvae_jax.model.families import FAMILIES
from nvae_jax.objectives.table import OBJECTIVES

OVERRIDE = "--config."


# The classes of every section, of which its `name` chooses one where there are several.
_CLASSES: dict[str, list[type]] = {
    "model": [family.config for family in FAMILIES.values()],
    "data": [*DATASETS.values()],
    "loading": [LoadingConfig],
    "training": [TrainingConfig],
    "objective": [*OBJECTIVES.values()],
}
_NAMED = ("model", "data", "objective")

# The fields of every section, whatever is chosen by name.
FIELDS: dict[str, list[str]] = {
    section: [
        *(["name"] if section in _NAMED else []),
        *dict.fromkeys(name for cls in classes for name in names_of(cls)),
    ]
    for section, classes in _CLASSES.items()
}

# Those that are text, also where it reads like a number, as a folder's name may.
_TEXTS = {
    f"{section}.{name}"
    for section, classes in _CLASSES.items()
    for cls in classes
    for name, kind in typing.get_type_hints(cls).items()
    if {*(typing.get_args(kind) or [kind])} <= {str, types.NoneType}
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
        value = parse_value(text)
        is_text = name in _TEXTS and value is not None and not isinstance(value, str)
        overrides[name] = text if is_text else value
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
