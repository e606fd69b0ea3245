"""The command line: `python -m nvae_jax.main --config configs/digits.py --workdir DIR`.

With `--mode` it does something else than train: `--mode sample --workdir DIR --num_images=64`.
"""

from collections.abc import Callable
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

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
from nvae_jax.parallel import keep_compiled_programs, keep_freed_memory
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
_MODE = flags.DEFINE_enum(
    "mode", "train", ["train", *MODES], "What to do; all but train need a trained model's workdir."
)
define_flags(_OPTIONS)


def main(argv: list[str]) -> None:
    """Does what the flags say."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)
    keep_freed_memory()
    keep_compiled_programs()
    if _MODE.value == "train":
        train(_CONFIG.value, str(_WORKDIR.value))
    else:
        _, run = MODES[_MODE.value]
        run(_WORKDIR.value, read_flags(_MODE.value, _OPTIONS, flags.FLAGS.flag_values_dict()))


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir"])
    flags.register_multi_flags_validator(
        ["mode", "config"],
        lambda values: values["mode"] != "train" or values["config"],
        "--mode train needs --config",
    )
    app.run(main)
