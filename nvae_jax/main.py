"""The command line: `python -m nvae_jax.main --config configs/digits.py --workdir DIR`.

Without `--mode` it trains. `--mode prepare` brings the configuration's dataset onto this machine;
`--mode sample --workdir DIR --num_images=64` and other modes use a trained model.

The exit code is 0 when all is done, or when SIGTERM asked a run to stop and it was saved; 2 when
what was asked for is impossible, with one line that says why; and 1 with a traceback when something
went wrong.
"""

import signal

from nvae_jax.memory import keep_freed_memory

if __name__ == "__main__":  # not in processes that read data
    # Kept for `main`, which knows what to do: the imports below take seconds.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    keep_freed_memory()  # before the imports below start threads

import re

from absl import app, flags, logging
from ml_collections import config_flags

from nvae_jax.command_line import define_flags, door, parse_flags, read_flags
from nvae_jax.compilation import keep_compiled_programs
from nvae_jax.config.run import PLACES, read_run
from nvae_jax.data.prepare import prepare
from nvae_jax.errors import require
from nvae_jax.evaluation.trained import open_run
from nvae_jax.modes.table import MODES
from nvae_jax.processes import Preemption, connect
from nvae_jax.training.loop import train

_OPTIONS = {mode: options for mode, (options, _) in MODES.items()}

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "What to train; single fields as --config.training.seed=1.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: new, or one to continue.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "prepare", *MODES], "What to do.")
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
define_flags(_OPTIONS)


def main(argv: list[str]) -> None:
    """Does what the flags say."""
    del argv
    preemption = Preemption() if _MODE.value == "train" else None
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    logging.set_verbosity(logging.WARNING)
    keep_compiled_programs()
    with door():
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
        if _MODE.value == "train":
            train(read_run(_CONFIG.value), str(_WORKDIR.value), preemption)
        elif _MODE.value == "prepare":
            prepare(read_run(_CONFIG.value).data)
        else:
            _, mode = MODES[_MODE.value]
            options = read_flags(_MODE.value, _OPTIONS, flags.FLAGS.flag_values_dict())
            mode(open_run(str(_WORKDIR.value), places=_places()), options)


def _places() -> dict[str, str | None]:
    """Where the command line says that a run's data is now."""
    if _CONFIG.value is None:
        return {name: flags.FLAGS[f"config.data.{name}"].value for name in PLACES}
    given = config_flags.get_override_values(flags.FLAGS["config"])
    return {name: given.get(f"data.{name}") for name in PLACES}


def _parse(argv: list[str]) -> list[str]:
    if not any(re.match(r"--?config(=|$)", argument) for argument in argv):
        for name in PLACES:  # else they are fields of the configuration
            flags.DEFINE_string(f"config.data.{name}", None, "Where a run's data is now.")
    return parse_flags(argv)


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
