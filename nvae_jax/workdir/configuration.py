"""A run's configuration in its folder: `config.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from nvae_jax.errors import ConfigError, reading
from nvae_jax.workdir.files import write

Settings = Mapping[str, Mapping[str, Any]]


def save_config(path: epath.Path, settings: Settings) -> None:
    """Writes settings, fields by section, which must have a JSON form."""
    write(path, (json.dumps(settings, indent=2) + "\n").encode())


def load_config(path: epath.Path) -> dict[str, Any]:
    """The settings in a file; tuples come back as lists.

    Raises:
      ConfigError: the file is missing or broken.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"--workdir is {str(path.parent)!r}; allowed: the folder of a run")
    if not path.exists():
        raise ConfigError(
            f"--workdir is {str(path.parent)!r}, which has no {path.name}; allowed: the folder of "
            "a run"
        )
    with reading("the configuration", path, "the JSON object that training wrote", ValueError):
        settings = json.loads(path.read_text())
        if not isinstance(settings, dict):
            raise ValueError("it is not an object")
    return settings
