"""From flags of the command line to the options of a mode: a frozen dataclass, checked by itself.

The fields of a mode's dataclass are its flags; their help is the class's docstring, which has a
line ``  name: what it is`` for each. Modes that share a field's name share the flag.
"""

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from absl import flags

from nvae_jax.config import ConfigError

T = TypeVar("T")


def define_flags(modes: Mapping[str, type], values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines a flag for every field of the modes' dataclasses; not given, it is None."""
    helps: dict[str, list[str]] = {}
    switches = set()
    for mode, cls in modes.items():
        texts = _field_texts(cls)
        for field in dataclasses.fields(cls):
            helps.setdefault(field.name, []).append(f"{mode}: {texts.get(field.name, '')}")
            if field.type in (bool, "bool"):
                switches.add(field.name)
    for name, lines in helps.items():
        define = flags.DEFINE_bool if name in switches else flags.DEFINE_string
        define(name, None, "\n".join(lines), flag_values=values)


def read_flags(mode: str, modes: Mapping[str, type], given: Mapping[str, Any]) -> Any:
    """The options of a mode from the flags that are given; what is not given takes its default.

    Args:
      mode: a key of `modes`.
      modes: as for `define_flags`.
      given: flags by name; those that are None, or belong to no mode, are left out.

    Raises:
      ValueError: a flag of another mode, or a value that is not of the field's kind. What the
        dataclass itself raises passes unchanged.
    """
    cls = modes[mode]
    kinds = typing.get_type_hints(cls)
    allowed = [field.name for field in dataclasses.fields(cls)]
    known = {field.name for options in modes.values() for field in dataclasses.fields(options)}
    values = {}
    for name, value in given.items():
        if value is None or name not in known:
            continue
        if name not in allowed:
            raise ConfigError(
                f"--{name} is no option of mode {mode}; allowed: {', '.join(allowed)}"
            )
        values[name] = parse(kinds[name], value, name) if isinstance(value, str) else value
    for field in dataclasses.fields(cls):
        if field.default is field.default_factory is dataclasses.MISSING:
            require(field.name, None, field.name in values, f"a value; mode {mode} needs it")
    return cls(**values)


def parse(kind: Any, text: str, field: str) -> Any:
    """Reads `text` as a `kind`: int, float, str, Literal, a tuple by commas, or "none".

    Raises: ValueError naming the field, the text and what is allowed.
    """
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if text.lower() == "none" and types.NoneType in options:
            return None
        (kind,) = (option for option in options if option is not types.NoneType)
        return parse(kind, text, field)
    if origin is typing.Literal:
        kind = str  # `validate` checks it
    if origin is tuple:
        return tuple(parse(options[0], part.strip(), field) for part in text.split(","))
    try:
        return kind(text)
    except ValueError:
        require(field, text, False, f"{kind.__name__}s")


def require(field: str, value: Any, condition: bool, allowed: str) -> None:
    """Raises ValueError, naming the field, the value and what is allowed, unless `condition`."""
    if not condition:
        raise ConfigError(f"{field} is {value!r}; allowed: {allowed}")


def validate(options: Any, *counts: str) -> None:
    """Checks what most options have in common.

    Raises: ValueError unless fields of a Literal type hold one of its values, `counts` are 1 or
      more, or None, and `seed` is of 32 bits.
    """
    for name, kind in typing.get_type_hints(type(options)).items():
        if typing.get_origin(kind) is typing.Literal:
            allowed = typing.get_args(kind)
            value = getattr(options, name)
            require(name, value, value in allowed, f"one of {', '.join(map(str, allowed))}")
    for name in counts:
        value = getattr(options, name)
        require(name, value, value is None or value > 0, "1 or more")
    require("seed", options.seed, 0 <= options.seed < 2**32, "0 to 2**32 - 1")


def _field_texts(cls: type) -> dict[str, str]:
    """What the docstring of a class says of each field."""
    texts: dict[str, str] = {}
    name = None
    for line in inspect.cleandoc(cls.__doc__ or "").splitlines():
        if start := re.fullmatch(r"  (\w+): (.*)", line):
            name = start[1]
            texts[name] = start[2]
        elif name and line.startswith("    "):
            texts[name] += " " + line.strip()
        else:
            name = None
    return texts
