"""The command lines of the measuring commands, and the configuration that they name.

A configuration is one as for `nvae_jax.main`, a .py file or a name, or a run's config.json. The
latter requires only JAX, Flax, optax and NumPy to be installed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from nvae_jax.command_line import Parser, expand_home
from nvae_jax.config.overrides import OVERRIDE, parse_overrides, with_overrides
from nvae_jax.config.run import RunConfig, read_run
from nvae_jax.errors import reading, require
from nvae_jax.packaged import read_config_file


def make_parser(doc: str | None, config_required: bool | None = None) -> Parser:
    """A parser whose errors are refusals of one line.

    Args:
      doc: docstring of the command, whose first line describes it.
      config_required: whether the option `--config` is required; None: there is no such option.
    """
    parser = Parser(description=(doc or "").partition("\n")[0], allow_abbrev=False)
    if config_required is not None:
        text = "configuration, a name, .py or .json; set fields as --config.training.batch_size=16"
        parser.add_argument("--config", required=config_required, metavar="FILE", help=text)
    return parser


def at_least(least: float, kind: Callable[[str], float] = int) -> Callable[[str], float]:
    """The type of an option that is a number, `least` or more."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = float("nan")
        if not value >= least:
            raise argparse.ArgumentTypeError(f"{text}; allowed: {least} or more")
        return value

    return read


def parse(parser: Parser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses a command line; arguments `--config.section.field=value` become `overrides`.

    Args:
      parser: of the other options.
      argv: the arguments; None: those of this process.

    Raises:
      ConfigError: an override is not of that form, or there is no configuration for it.
    """
    arguments = expand_home(sys.argv[1:] if argv is None else argv)
    given = [argument for argument in arguments if argument.startswith(OVERRIDE)]
    options = parser.parse_args([argument for argument in arguments if argument not in given])
    options.overrides = parse_overrides(given)
    if given:
        has_config = getattr(options, "config", None) is not None
        require("--config", None, has_config, f"a configuration, for {given[0]}")
    return options


def read_config(options: argparse.Namespace, **overrides: Any) -> RunConfig:
    """The run that the options of `parse` describe.

    Args:
      options: with `config` and `overrides`.
      **overrides: further values by dotted name.

    Raises:
      ConfigError: the configuration cannot be read, or does not describe a run.
    """
    settings = read_settings(options.config)
    return read_run(with_overrides(settings, options.overrides | overrides))


def read_settings(path: str) -> dict[str, Any]:
    """The configuration in a file, as plain values.

    Args:
      path: a .json file; or a configuration as for `nvae_jax.packaged.find_config`.

    Raises:
      ConfigError: the file cannot be read.
    """
    if not path.endswith(".json"):
        return read_config_file(path).to_dict()
    with reading("--config", path, "a .py file, or the config.json of a run", ValueError):
        with open(path, encoding="utf-8") as lines:
            settings = json.load(lines)
        if not isinstance(settings, dict):
            raise ValueError("it is not an object")
    return settings
