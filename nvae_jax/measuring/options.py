"""The command lines of the measuring commands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from nvae_jax.command_line import Parser, expand_home
from nvae_jax.config.overrides import OVERRIDE, parse_overrides
from nvae_jax.errors import require


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
