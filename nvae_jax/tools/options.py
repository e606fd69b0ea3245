"""The options of the commands: how they are parsed, and checked before long work."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence

from nvae_jax.command_line import Parser, expand_home
from nvae_jax.config.overrides import OVERRIDE, parse_overrides
from nvae_jax.errors import require, writing
from nvae_jax.measuring.results import PART


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


def check_file(option: str, path: str | None) -> None:
    """Checks, before long work, that its results can be written to a file.

    Args:
      option: the option that names the file.
      path: the file; None: the option is not given.

    Raises:
      ConfigError: the file's folder does not exist or cannot be written to, or the file is a
        folder.
    """
    if path is not None:
        folder = os.path.dirname(os.path.abspath(path))
        require(option, path, os.path.isdir(folder), "a file in a folder that exists")
        require(option, path, not os.path.isdir(path), "a file, and no folder")
        with writing(path):
            open(path + PART, "w").close()
            os.remove(path + PART)


def check_picture(option: str, path: str | None) -> None:
    """As `check_file`, for a picture.

    Raises:
      ConfigError: the file cannot be written, or matplotlib cannot draw such a file.
    """
    check_file(option, path)
    if path is not None:
        installed = importlib.util.find_spec("matplotlib") is not None
        require(option, path, installed, "with matplotlib (pip install matplotlib)")
        from matplotlib.figure import Figure

        formats = Figure().canvas.get_supported_filetypes()
        fits = os.path.splitext(path)[1].removeprefix(".").lower() in formats
        require(option, path, fits, f"a file name that ends with {', '.join(formats)}")
