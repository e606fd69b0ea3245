"""From a mapping of plain values to a frozen dataclass, with errors that name the field.

The outermost functions of the package take a ``ConfigDict``; everything below them takes frozen
dataclasses. :func:`from_mapping` is the only door between the two.
"""

import dataclasses
import types
import typing
from typing import Any, TypeVar

T = TypeVar("T")


class ConfigError(ValueError):
    """What was asked for is impossible, or does not fit the work directory."""


def from_mapping(cls: type[T], mapping: Any, field: str) -> T:
    """Builds the dataclass ``cls`` from ``mapping``, checking every name and every type.

    A field may be annotated as ``bool``, ``int``, ``float``, ``str``, ``Literal[...]``,
    ``tuple[X, ...]``, ``tuple[X, Y]`` or a union of these and ``None``. An int serves for a float
    and a list for a tuple; nothing else is converted, and a bool is not an int.

    Args:
      cls: a dataclass.
      mapping: a ``ConfigDict`` or any other mapping from field names to values.
      field: the path of ``mapping`` in the whole configuration, for messages: ``"config.model"``.

    Returns:
      An instance of ``cls``; fields that ``mapping`` lacks take their defaults.

    Raises:
      ValueError: ``mapping`` is no mapping, names a field that ``cls`` lacks, lacks one that has no
        default, or holds a value of the wrong type. What ``cls`` itself raises passes unchanged.
      TypeError: ``cls`` is annotated with a type that is not listed above.
    """
    # ConfigDict does not register as a collections.abc.Mapping.
    if not hasattr(mapping, "keys"):
        raise _wrong(field, mapping, "a mapping of fields")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for name in mapping.keys():  # noqa: SIM118 - a ConfigDict iterates over its keys all the same
        if name not in fields:
            raise ValueError(f"{field}.{name} is unknown; allowed: {', '.join(fields)}")
    kinds = typing.get_type_hints(cls)
    values = {}
    for name, declared in fields.items():
        if name in mapping:
            values[name] = _convert(kinds[name], mapping[name], f"{field}.{name}")
        elif declared.default is declared.default_factory is dataclasses.MISSING:
            raise ValueError(f"{field}.{name} is missing; allowed: {_describe(kinds[name])}")
    return cls(**values)


def _convert(kind: Any, value: Any, field: str) -> Any:
    """Returns ``value`` as a ``kind``, or raises a ValueError that names ``field``."""
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        for option in options:
            try:
                return _convert(option, value, field)
            except ValueError:
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
        if type(value) in (int, float):
            return float(value)
    elif kind in (bool, int, str, types.NoneType):
        if type(value) is kind:
            return value
    else:
        raise TypeError(f"{field} is annotated as {kind}, which from_mapping does not know")
    raise _wrong(field, value, _describe(kind))


def _describe(kind: Any) -> str:
    """Says in words which values ``kind`` allows."""
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


def _wrong(field: str, value: Any, allowed: str) -> ValueError:
    return ValueError(f"{field} is {value!r}; allowed: {allowed}")
