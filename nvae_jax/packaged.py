"""Configurations by name: those that come with the package, and files of the user's."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import pkgutil
import re
from typing import Any

from nvae_jax.errors import ConfigError, reading

_PACKAGE = "nvae_jax.configs"


def packaged_names() -> list[str]:
    """The names of the configurations that come with the package."""
    places = importlib.import_module(_PACKAGE).__path__
    return sorted(module.name for module in pkgutil.iter_modules(places))


def find_config(name: str) -> str:
    """The configuration file that a name stands for.

    Args:
      name: `digits`, which comes with the package, or the path of a .py file; either with an
        argument behind a colon, such as `image_folder:cpu64`.

    Returns: the path of the file, with the argument.

    Raises:
      ConfigError: there is neither a file nor a packaged configuration of that name.
    """
    parts = re.fullmatch(r"(.*?\.py(?=:|$)|[^:]*)(.*)", name, re.DOTALL)
    file, argument = parts.groups() if parts else (name, "")
    if os.path.isfile(file):
        return name
    packaged = packaged_names()
    if file in packaged:
        spec = importlib.util.find_spec(f"{_PACKAGE}.{file}")
        return f"{spec.origin if spec else file}{argument}"
    same = re.sub(r"^.*/|\.py$", "", file)
    closest = difflib.get_close_matches(same, packaged, n=1)
    meant = f"did you mean {closest[0]}{argument}? " if closest else ""
    raise ConfigError(
        f"--config is {name!r}, which is no file; {meant}allowed: a .py file, or one of "
        f"{', '.join(packaged)}"
    )


def read_config_file(name: str) -> Any:
    """The configuration, a `ConfigDict`, of a name as for `find_config`.

    Raises:
      ConfigError: there is no such file, or it does not load.
    """
    file, _, argument = find_config(name).partition(".py")
    # A configuration file is a program of the user's, which raises all kinds of exceptions.
    with reading("--config", name, "a configuration that loads", Exception):
        spec: Any = importlib.util.spec_from_file_location("config", f"{file}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.get_config(*filter(None, [argument[1:]]))
