"""Command lines: flags from the fields of dataclasses, and how a command refuses.

The fields of a mode's dataclass are its flags; their help is the class's docstring, which has a
line `  name: what it is` for each. Modes that share a field's name share the flag.
"""

import argparse
import contextlib
import dataclasses
import inspect
import io
import os
import re
import signal
import sys
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from absl import flags

from nvae_jax.errors import ConfigError, require
from nvae_jax.fields import parse, require_literals

_WIDTH, _INDENT = 96, 28  # of help, in characters
FAILED = 3  # exit code where numbers are not finite: the same command would fail again


def refuse(message: object) -> NoReturn:
    """Ends the process with exit code 2 and one line that says why."""
    print(f"refused: {' '.join(str(message).split())}", file=sys.stderr, flush=True)
    sys.exit(2)


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors are refusals of one line."""

    def error(self, message: str) -> NoReturn:
        """Refuses the command line."""
        refuse(message)


@contextlib.contextmanager
def door() -> Iterator[None]:
    """Around all that a command does: a ConfigError is refused, anything else is a bug.

    Numbers that are not finite are neither: the command ends with exit code 3 and one line. Ctrl-C
    ends a command that has nothing to save, with the exit code of shells.
    """
    try:
        yield
    except ConfigError as error:
        refuse(error)
    except FloatingPointError as error:
        print(f"failed: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        sys.exit(FAILED)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(128 + signal.SIGINT)


class _Lasting(io.FileIO):
    """A file in which what can no longer be written is dropped."""

    def write(self, content: Any) -> int:
        """Says that everything is written."""
        try:
            return super().write(content) or len(content)
        except OSError:
            return len(content)


def outlive_the_terminal() -> None:
    """Has this process go on where what it prints is lost, as when its terminal is closed.

    The same is true of a reader that has ended (`| head`), and of a full disk. A character that the
    terminal cannot show, or a file's name that is no text, is printed as its number.
    """
    for name in ("stdout", "stderr"):
        old = getattr(sys, name)
        try:
            raw = _Lasting(old.fileno(), "wb", closefd=False)
        except (AttributeError, OSError):  # it is closed, or no file at all
            continue
        old.flush()
        new = io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding=old.encoding,
            errors="backslashreplace",
            line_buffering=True,
        )
        setattr(sys, name, new)


def expand_home(argv: Sequence[str]) -> list[str]:
    """The arguments with the home folder in place of `~`, where a shell does not put it.

    Shells expand `~/photos`, but not `--images=~/a.png,~/b.png`.
    """
    return [re.sub(r"(^|[=,])~(?=/)", lambda m: m[1] + os.path.expanduser("~"), a) for a in argv]


def parse_flags(argv: list[str], positional: bool = False) -> list[str]:
    """Parses absl's flags and loads the configuration of the flag `config`; refuses mistakes.

    Args:
      argv: the command line.
      positional: whether there may be arguments that are not flags.

    Returns: the program's name, and the arguments that are not flags.
    """
    try:
        rest = flags.FLAGS(argv)
        if len(rest) > 1 and not positional:
            raise flags.Error(f"unexpected arguments: {' '.join(rest[1:])}")
        if flags.FLAGS["config"].value is not None:
            flags.FLAGS["config"].value.keys()  # fails if the file could not be loaded
        return rest
    # A configuration file is a program of the user's, which raises all kinds of exceptions.
    except Exception as error:
        refuse(_what_is_wrong(error))


_OF_THE_FILE = ": Error whilst parsing config file"


def _what_is_wrong(error: BaseException) -> object:
    """The message of an error of absl, ml_collections or a configuration file."""
    flag, of_file, _ = str(error).partition(_OF_THE_FILE)
    # The text of such an error has the whole traceback of the one that the file has raised.
    while _OF_THE_FILE[2:] in str(error) and error.__context__ is not None:
        error = error.__context__
    if of_file and not isinstance(error, ConfigError):
        return f"{flag}: {type(error).__name__}: {error}"
    message: object = error
    # ml_collections wraps errors in errors, and a KeyError's text is its message in quotes.
    while isinstance(message, AttributeError | KeyError) and message.args:
        message = message.args[0]
    return message


def define_flags(modes: Mapping[str, type], values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines a flag for every field of the modes' dataclasses; its default is None."""
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


def with_file(mode: str, modes: Mapping[str, type], rest: Sequence[str]) -> dict[str, str]:
    """The flag `file` from arguments that are not flags, where the mode has one: `--mode m FILE`.

    Raises:
      ConfigError: the mode has no such flag, or there are more arguments.
    """
    has = "file" in {field.name for field in dataclasses.fields(modes[mode])}
    if len(rest) > (1 if has else 0):
        raise ConfigError(f"unexpected arguments: {' '.join(rest[1 if has else 0 :])}")
    return {"file": rest[0]} if rest else {}


def read_flags(
    mode: str,
    modes: Mapping[str, type],
    given: Mapping[str, Any],
    elsewhere: Mapping[str, str] = types.MappingProxyType({}),
) -> Any:
    """The options of a mode from the flags that are given.

    Args:
      mode: a key of `modes`.
      modes: as for `define_flags`.
      given: flags by name; those that are None, or belong to no mode, are ignored.
      elsewhere: by name, what to suggest where the mode has no such option.

    Returns:
      An instance of the mode's dataclass; fields without a flag have their defaults.

    Raises:
      ConfigError: a flag of another mode is given, one that the mode needs is not, or a value is
        not of the field's kind.
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
            meant = f"did you mean {elsewhere[name]}? " if name in elsewhere else ""
            raise ConfigError(
                f"--{name} is not an option of mode {mode}; {meant}allowed: "
                f"{', '.join(allowed) or 'none'}"
            )
        values[name] = parse(kinds[name], value, name) if isinstance(value, str) else value
    for field in dataclasses.fields(cls):
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and field.name not in values:
            raise ConfigError(
                f"--{field.name} is missing, which mode {mode} requires; allowed: "
                f"{_field_texts(cls).get(field.name, 'a value')}"
            )
    return cls(**values)


def validate(options: Any, *counts: str) -> None:
    """Checks what the options of modes have in common.

    Raises:
      ConfigError: a field of a Literal type holds none of its values, one of the fields `counts` is
        neither None nor a number that there may be, `seed` does not fit 32 bits, or `name` leads
        out of its folder.
    """
    require_literals(options)
    for name in counts:
        value, most = getattr(options, name), 2**16 if name == "batch_size" else 10**9
        require(name, value, value is None or 0 < value <= most, f"1 to {most}")
    file = getattr(options, "name", None)
    inside = file is None or (file and not file.startswith("/") and ".." not in file.split("/"))
    require("name", file, bool(inside), "the name of a file, which may be in a subfolder")
    seed = getattr(options, "seed", 0)
    require("seed", seed, 0 <= seed < 2**32, "0 to 2**32 - 1")


def option_lines(cls: type) -> list[str]:
    """What a person can read of a mode's options: the flag, its meaning and its default."""
    texts = _field_texts(cls)
    lines = []
    for field in dataclasses.fields(cls):
        needed = field.default is field.default_factory is dataclasses.MISSING
        flag = f"--{field.name}" if field.type in (bool, "bool") else f"--{field.name}=…"
        text = texts.get(field.name, "")
        if needed:
            text += " (required)"
        elif field.default not in (None, ()) and field.type not in (bool, "bool"):
            value = field.default
            shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
            text += f" (default: {shown})"
        lines += _entry(flag, text)
    return lines


def entry_lines(entries: Mapping[str, str]) -> list[str]:
    """Names, each beside its meaning."""
    return [line for name, text in entries.items() for line in _entry(name, text)]


def _entry(name: str, text: str) -> list[str]:
    first, *others = textwrap.wrap(text, _WIDTH - _INDENT) or [""]
    beside = [f"  {name:<{_INDENT - 2}}{first}"]
    if len(name) > _INDENT - 4:
        beside = [f"  {name}", f"{'':{_INDENT}}{first}"]
    return beside + [f"{'':{_INDENT}}{line}" for line in others]


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
