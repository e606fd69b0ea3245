"""Frozen dataclasses from mappings and from text, with errors that name the field.

Configuration files and command lines hold plain values; the code below them works with frozen
dataclasses. This module converts one into the other.
"""

import dataclasses
import difflib
import sys
import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

from nvae_jax.errors import ConfigError, require

T = TypeVar("T")


def names_of(cls: type, without_default: bool = False) -> list[str]:
    """The names of a dataclass's fields: all of them, or those that have no default."""
    return [
        field.name
        for field in dataclasses.fields(cls)
        if not without_default or field.default is field.default_factory is dataclasses.MISSING
    ]


def unknown(section: str, name: str, known: Sequence[str]) -> ConfigError:
    """The error for a field that there is not; it names the closest one and all there are.

    Args:
      section: the path of the mapping that has the field, such as `model`.
      name: of the field.
      known: the names that are allowed.
    """
    initials = [other for other in known if "".join(w[:1] for w in other.split("_")) == name]
    closest = initials or difflib.get_close_matches(name, known, n=1)
    meant = f"did you mean {closest[0]}? " if closest else ""
    return ConfigError(
        f"{section}.{name} is unknown; {meant}allowed: {', '.join(known) or 'no fields'}"
    )


def from_mapping(cls: type[T], mapping: Any, field: str) -> T:
    """Builds the dataclass `cls` from `mapping`, checking every name and every type.

    A field may be annotated as `bool`, `int`, `float`, `str`, `Literal[...]`, `tuple[X, ...]`,
    `tuple[X, Y]`, a dataclass, or a union of these and `None`. An int is accepted for a float, a
    list for a tuple and a mapping for a dataclass; nothing else is converted, and a bool is not an
    int.

    Args:
      cls: a dataclass.
      mapping: a `ConfigDict` or any other mapping from field names to values.
      field: the path of `mapping` in the whole configuration, for messages, such as `model`.

    Returns:
      An instance of `cls`; fields that `mapping` lacks have their defaults.

    Raises:
      ConfigError: `mapping` is not a mapping, names a field that `cls` lacks, lacks a field that
        has no default, or holds a value of the wrong type.
      TypeError: `cls` is annotated with a type that is not listed above.
    """
    # ConfigDict does not register as a collections.abc.Mapping.
    if not hasattr(mapping, "keys"):
        require(field, mapping, False, "a mapping of fields")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for name in mapping.keys():  # noqa: SIM118 - a ConfigDict iterates over its keys all the same
        if name not in fields:
            raise unknown(field, name, list(fields))
    kinds = typing.get_type_hints(cls)
    values = {}
    for name, declared in fields.items():
        if name in mapping:
            values[name] = _convert(kinds[name], mapping[name], f"{field}.{name}")
        elif declared.default is declared.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{field}.{name} is missing; allowed: {_describe(kinds[name])}")
    return cls(**values)


def _convert(kind: Any, value: Any, field: str) -> Any:
    """Returns `value` as a `kind`, or raises a ConfigError that names `field`."""
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        for option in options:
            try:
                return _convert(option, value, field)
            except ConfigError:
                continue
    elif origin is typing.Literal:
        # `True == 1`, so the type is compared too.
        if any(type(value) is type(option) and value == option for option in options):
            return value
    elif origin is tuple:
        if isinstance(value, list | tuple):
            if options[-1] is Ellipsis:
                options = options[:1] * len(value)
            if len(value) == len(options):
                return tuple(
                    _convert(option, item, f"{field}[{index}]")
                    for index, (option, item) in enumerate(zip(options, value, strict=True))
                )
    elif kind is float:
        if type(value) in (int, float) and abs(value) <= sys.float_info.max:  # NaN is not
            return float(value)
    elif kind in (bool, int, str, types.NoneType):
        if type(value) is kind:
            return value
    elif isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return from_mapping(kind, value, field)
    else:
        raise TypeError(f"{field} is annotated as {kind}, which from_mapping does not know")
    return require(field, value, False, _describe(kind))


def _describe(kind: Any) -> str:
    """Says in words which values `kind` allows."""
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(option) for option in options)
    if origin is typing.Literal:
        return ", ".join(repr(option) for option in options)
    if origin is tuple:
        if options[-1] is Ellipsis:
            return f"a list of {_describe(options[0])}"
        return f"a list of {len(options)}: {', '.join(_describe(option) for option in options)}"
    return "None" if kind is types.NoneType else kind.__name__


def parse(kind: Any, text: str, field: str) -> Any:
    """Reads `text` as a `kind`: int, float, str, Literal, a comma-separated tuple, or "none".

    Raises:
      ConfigError: `text` is not of that kind; the message names `field`.
    """
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if text.lower() == "none" and types.NoneType in options:
            return None
        (kind,) = (option for option in options if option is not types.NoneType)
        return parse(kind, text, field)
    if origin is typing.Literal:
        require(field, text, text in options, ", ".join(map(str, options)))
        return text
    if origin is tuple:
        return tuple(parse(options[0], part.strip(), field) for part in text.split(","))
    try:
        return kind(text)
    except ValueError:
        return require(field, text, False, f"{kind.__name__}s")


def require_literals(config: Any, section: str = "") -> None:
    """Checks that the fields of a dataclass that are annotated as Literal hold one of its values.

    Args:
      config: the dataclass.
      section: what messages put in front of a field's name, such as `model.`.
    """
    for name, kind in typing.get_type_hints(type(config)).items():
        if typing.get_origin(kind) is typing.Literal:
            allowed = typing.get_args(kind)
            value = getattr(config, name)
            require(f"{section}{name}", value, value in allowed, ", ".join(map(str, allowed)))
