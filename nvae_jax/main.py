"""The command line: `python -m nvae_jax.main --config configs/digits.py --workdir DIR`.

With `--mode` it does something else than train: `--mode prepare` brings the configuration's dataset
onto this machine, `--mode sample --workdir DIR --num_images=64` and others use a trained model.

It exits with 0 when all is done, or when SIGTERM asked it to stop and the run was saved; with 2
if it refuses what it was asked for; and with another code if something went wrong.
"""

import signal

from nvae_jax.memory import keep_freed_memory

if __name__ == "__main__":  # not in processes that read data
    # Kept for `main`, which knows what to do: the imports below take seconds.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    keep_freed_memory()  # before the imports below start threads

import sys
from collections.abc import Callable
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from nvae_jax.config import ConfigError
from nvae_jax.data.prepare import prepare
from nvae_jax.evaluation.coding import (
    DecodeOptions,
    EncodeOptions,
    ReconstructOptions,
    decode,
    encode,
    reconstruct,
)
from nvae_jax.evaluation.editing import EditOptions, edit
from nvae_jax.evaluation.fid import FIDOptions, fid
from nvae_jax.evaluation.interpolation import InterpolateOptions, interpolate
from nvae_jax.evaluation.neighbors import NeighborsOptions, neighbors
from nvae_jax.evaluation.report import EvaluateOptions, evaluate
from nvae_jax.evaluation.sampling import SampleOptions, sample
from nvae_jax.options import define_flags, read_flags
from nvae_jax.parallel import keep_compiled_programs
from nvae_jax.processes import Preemption, connect
from nvae_jax.training.loop import train

# What can be asked of a trained model: the options of each mode, and what it does.
MODES: dict[str, tuple[type, Callable[..., Any]]] = {
    "evaluate": (EvaluateOptions, evaluate),
    "sample": (SampleOptions, sample),
    "encode": (EncodeOptions, encode),
    "decode": (DecodeOptions, decode),
    "reconstruct": (ReconstructOptions, reconstruct),
    "interpolate": (InterpolateOptions, interpolate),
    "edit": (EditOptions, edit),
    "neighbors": (NeighborsOptions, neighbors),
    "fid": (FIDOptions, fid),
}
_OPTIONS = {mode: options for mode, (options, _) in MODES.items()}

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "What to train; single fields as --config.training.seed=1.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: new, or one to go on with.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "prepare", *MODES], "What to do.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "One process of many: host:port of the first."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes there are.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "One process of many: find the others in the environment (TPU VM, SLURM)."
)
_HEARTBEAT_TIMEOUT = flags.DEFINE_integer(
    "heartbeat_timeout", 60, "Seconds of silence after which a process counts as dead."
)
define_flags(_OPTIONS)


def main(argv: list[str]) -> None:
    """Does what the flags say."""
    del argv
    preemption = Preemption() if _MODE.value == "train" else None
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    logging.set_verbosity(logging.WARNING)
    keep_compiled_programs()
    try:
        if _DISTRIBUTED.value or _COORDINATOR.value:
            connect(
                _COORDINATOR.value,
                _NUM_PROCESSES.value,
                _PROCESS_ID.value,
                _HEARTBEAT_TIMEOUT.value,
            )
        if _MODE.value == "train":
            train(_CONFIG.value, str(_WORKDIR.value), preemption)
        elif _MODE.value == "prepare":
            prepare(_CONFIG.value)
        else:
            _evaluate(_MODE.value)
    except ConfigError as error:
        _refuse(error)


def _evaluate(mode: str) -> None:
    _, run = MODES[mode]
    options = read_flags(mode, _OPTIONS, flags.FLAGS.flag_values_dict())
    try:
        run(_WORKDIR.value, options)
    except FileNotFoundError as error:
        _refuse(error)


def _parse(argv: list[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            raise flags.Error(f"unexpected arguments: {' '.join(rest[1:])}")
        if _CONFIG.value is not None:
            _CONFIG.value.keys()  # fails if the file could not be loaded
        return rest
    except (flags.Error, AttributeError, KeyError, OSError, ValueError) as error:
        _refuse(error)


def _refuse(error: Exception) -> NoReturn:
    # ml_collections wraps errors in errors, and a KeyError's text is its message in quotes.
    message: object = error
    while isinstance(message, AttributeError | KeyError) and message.args:
        message = message.args[0]
    print(f"refused: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    flags.register_multi_flags_validator(
        ["mode", "config"],
        lambda values: values["mode"] not in ("train", "prepare") or values["config"],
        "--mode train and --mode prepare need --config",
    )
    flags.register_multi_flags_validator(
        ["mode", "workdir"],
        lambda values: values["mode"] == "prepare" or values["workdir"],
        "--workdir is needed, by all modes but prepare",
    )
    app.run(main, flags_parser=_parse)
