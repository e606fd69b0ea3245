"""The command line: `python -m nvae_jax.main --config configs/digits.py --workdir DIR`.

Without `--mode` it trains. `--mode prepare` brings the configuration's dataset onto this machine;
`--mode sample --workdir DIR --num_images=64` and other modes use a trained model. The command
`nvae-jax`, which installing the package brings, is the same.

A run that exists goes on by `--workdir DIR` alone, with the configuration that it has saved; single
fields may be given on top.

The exit code is 0 when all is done, or when a signal asked a run to stop and it was saved; 2 when
what was asked for is impossible, with one line that says why; 3 when a run diverged and going back
did not help; and 1 with a traceback when something went wrong.
"""

import os
import signal

from nvae_jax.memory import keep_freed_memory

# Or TensorFlow, which only writes files here, reports on its build amid the progress.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

if __name__ == "__main__":  # not in processes that read data
    # Kept for `main`, which knows what to do: the imports below take seconds.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
    keep_freed_memory()  # before the imports below start threads

import dataclasses
import platform
import re
import sys
import textwrap
from typing import Any

import flax
import jax
from absl import app, flags, logging
from ml_collections import config_flags

import nvae_jax
from nvae_jax.command_line import (
    define_flags,
    door,
    entry_lines,
    expand_home,
    option_lines,
    outlive_the_terminal,
    parse_flags,
    read_flags,
    with_file,
)
from nvae_jax.compilation import (
    give_back_after_compiling,
    keep_compiled_programs,
    leaving_promptly,
)
from nvae_jax.config.overrides import FIELDS, OVERRIDE, check_name, parse_overrides
from nvae_jax.config.run import PLACES, RunConfig, Source, load_run
from nvae_jax.data.prepare import prepare
from nvae_jax.errors import refusing_exhausted, require
from nvae_jax.evaluation.trained import open_run
from nvae_jax.modes.table import MODES
from nvae_jax.packaged import find_config, packaged_names
from nvae_jax.processes import Preemption, connect
from nvae_jax.training.loop import train
from nvae_jax.user_cache import keep_libraries_out_of_here
from nvae_jax.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """What mode train is asked for, beside the configuration.

    Attributes:
      accept_changes: whether a run may go on with other settings and images than before.
      ignore_memory: whether a run starts although the memory seems too small for it.
    """

    accept_changes: bool = False
    ignore_memory: bool = False


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """Mode prepare has no options beside the configuration."""


_OPTIONS = {"train": TrainOptions, "prepare": PrepareOptions}
_OPTIONS |= {mode: options for mode, (options, _) in MODES.items()}

_ABOUT = {
    "train": "trains a model, or goes on with a run; without --mode.",
    "prepare": "brings a configuration's dataset onto this machine.",
}
_ABOUT |= {
    mode: (sys.modules[options.__module__].__doc__ or "").splitlines()[0].partition(": ")[2]
    for mode, (options, _) in MODES.items()
}
# Options that decide how much memory a mode requires.
_SIZES = ("batch_size", "draws_at_once", "num_images", "images", "steps", "samples", "variations")

# Fields of the configuration that could be mistaken for options.
_ELSEWHERE = {
    name: f"{OVERRIDE}{section}.{name}"
    for section in ("model", "objective", "data", "loading", "training")
    for name in FIELDS[section]
}

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "What to train: a name such as digits, or a .py file; single fields as "
    "--config.training.seed=1.",
    lock_config=True,
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: new, or one to continue.")
_RESULTS = flags.DEFINE_string("results", None, "Where modes write; the work directory by default.")
_MODE = flags.DEFINE_enum("mode", "train", [*_OPTIONS], "What to do.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "One process of many: host:port of the first."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "The number of processes.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "One process of many: find the others in the environment (TPU VM, SLURM)."
)
_HEARTBEAT_TIMEOUT = flags.DEFINE_integer(
    "heartbeat_timeout", 60, "Seconds of silence after which a process counts as dead."
)
_FIELDS: list[str] = []  # arguments `--config.section.field=value` that absl does not parse
define_flags(_OPTIONS)


def main(argv: list[str]) -> None:
    """Does what the flags say."""
    outlive_the_terminal()
    preemption = Preemption() if _MODE.value == "train" else None
    logging.set_verbosity(logging.WARNING)
    with leaving_promptly(), door():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, Preemption.SIGNALS)
        mode = _MODE.value
        given = flags.FLAGS.flag_values_dict() | with_file(mode, _OPTIONS, argv[1:])
        options = read_flags(mode, _OPTIONS, given, _ELSEWHERE)
        run = _run() if mode in ("train", "prepare") else None
        needless = mode == "prepare"
        require("--workdir", _WORKDIR.value, needless or bool(_WORKDIR.value), "a folder")
        unused = run is not None and _RESULTS.value is not None
        require("--results", _RESULTS.value, not unused, f"other modes than {mode}")
        require("--results", _RESULTS.value, _RESULTS.value != "", "a folder")
        keep_libraries_out_of_here()
        keep_compiled_programs()
        give_back_after_compiling()
        alone = not (_DISTRIBUTED.value or _COORDINATOR.value)
        for flag in (_NUM_PROCESSES, _PROCESS_ID):
            unused = alone and flag.value is not None
            require(f"--{flag.name}", flag.value, not unused, "with --coordinator or --distributed")
        if not alone:
            connect(
                _COORDINATOR.value,
                _NUM_PROCESSES.value,
                _PROCESS_ID.value,
                _HEARTBEAT_TIMEOUT.value,
            )
        if run is None:
            _, do = MODES[mode]
            places, results = _places(mode), _RESULTS.value
            model = open_run(str(_WORKDIR.value), places=places, results=results)
            model.workdir.check_writable()
            sizes = [name for name in _SIZES if hasattr(options, name)]
            less = f"less of {', '.join(f'--{name}' for name in sizes)}"
            with refusing_exhausted(f"mode {mode}", less):
                do(model, options)
        elif mode == "prepare":
            prepare(run.data)
        else:
            train(
                run, str(_WORKDIR.value), preemption, options.accept_changes, options.ignore_memory
            )


def _run() -> RunConfig:
    """The run that the configuration describes, or the saved one with other values of fields."""
    source: Source | None = _CONFIG.value
    if source is None:
        allowed = "a configuration, or --workdir of a run that exists"
        saved = _WORKDIR.value is not None and Workdir(_WORKDIR.value).has_config()
        require("--config", None, saved, allowed)
        source = Workdir(str(_WORKDIR.value))
    return load_run(source, parse_overrides(_FIELDS))


def _places(mode: str) -> dict[str, Any]:
    """Where the command line says that a run's data is now."""
    given = parse_overrides(_FIELDS)
    if _CONFIG.value is not None:
        given |= config_flags.get_override_values(flags.FLAGS["config"])
    places = {f"data.{name}": name for name in PLACES}
    for name, value in given.items():
        allowed = f"{', '.join(places)}: mode {mode} has all other fields from the run"
        require(f"{OVERRIDE}{name}", value, name in places, allowed)
    return {name: given.get(field) for field, name in places.items()}


def _help(argv: list[str]) -> str:
    """The help of the mode that is named, or of the whole command."""
    name = re.search(r"(?:^|\0)--?mode[=\0](\w+)", "\0".join(argv))
    if name and name[1] in _OPTIONS:
        mode = name[1]
        lines = [f"--mode {mode}: {_ABOUT[mode]}", "", *option_lines(_OPTIONS[mode])]
        return "\n".join([*lines, "", "--help alone says what all modes have in common."])
    shared = (_CONFIG, _WORKDIR, _RESULTS)
    several = (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID, _DISTRIBUTED, _HEARTBEAT_TIMEOUT)
    return "\n".join(
        [
            "NVAE, a deep hierarchical variational autoencoder.",
            "",
            "  nvae-jax --config digits --workdir runs/digits                 train, or go on",
            "  nvae-jax --mode sample --workdir runs/digits --num_images=64   use a trained model",
            "  nvae-jax --mode sample --help                                  options of a mode",
            "",
            "Modes:",
            *entry_lines({f"--mode {mode}": text for mode, text in _ABOUT.items()}),
            "",
            "Options:",
            *entry_lines({f"--{flag.name}": flags.FLAGS[flag.name].help for flag in shared}),
            *entry_lines({"--version": "Versions of this package and of what it runs on."}),
            "",
            "A run of several processes (docs/scaling.md):",
            *entry_lines({f"--{flag.name}": flags.FLAGS[flag.name].help for flag in several}),
            "",
            *textwrap.wrap(f"Configurations: {', '.join(packaged_names())}.", 96),
        ]
    )


def _with_config_file(argv: list[str]) -> list[str]:
    """The arguments with the file of the configuration that is named."""
    found = list(argv)
    for place, argument in enumerate(argv):
        if given := re.fullmatch(r"--?config=(.+)", argument, re.DOTALL):
            found[place] = f"--config={find_config(given[1])}"
        elif argument in ("--config", "-config") and argv[place + 1 :]:
            found[place + 1] = find_config(argv[place + 1])
    return found


def _with_values(argv: list[str]) -> list[str]:
    """The arguments with `--config.section.field=value` in place of the same without `=`."""
    found: list[str] = []
    for argument in argv:
        awaits = found and re.fullmatch(r"--?config\.[\w.]+", found[-1])
        if awaits and not argument.startswith("-"):
            found[-1] += f"={argument}"
        else:
            found.append(argument)
    return found


def _parse(argv: list[str]) -> list[str]:
    if {"--help", "-help", "-h"} & set(argv):
        print(_help(argv))
        sys.exit(0)
    if "--version" in argv:
        versions = f"jax {jax.__version__}, flax {flax.__version__}"
        print(f"nvae_jax {nvae_jax.__version__} ({versions}, Python {platform.python_version()})")
        sys.exit(0)
    argv = _with_values(expand_home(argv))
    with door():
        argv = _with_config_file(argv)
    fields = [argument for argument in argv[1:] if re.match(r"--?config\.", argument)]
    with door():
        for field in fields:
            check_name(re.sub(r"^--?config\.|=.*$", "", field, flags=re.DOTALL))
    if any(re.match(r"--?config(=|$)", argument) for argument in argv):
        # A size is an int or a pair, where a field of a ConfigDict has one type.
        fields = [field for field in fields if re.match(r"--?config\.data\.size=", field)]
    # Without a configuration, they are fields of the saved one.
    _FIELDS.extend(re.sub("^--?", "--", field) for field in fields)
    rest = [argument for argument in argv if argument not in fields]
    sys.argv = rest  # in which ml_collections looks for fields by itself
    return parse_flags(rest, positional=True)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
