"""From an official PyTorch checkpoint to a work directory.

Command: python -m nvae_jax.tools.import_official checkpoint.pt --workdir DIR

The work directory holds `config.json` and one checkpoint, from which evaluation, sampling and
training can start; see `nvae_jax.interop`. It requires PyTorch: `pip install 'nvae-jax[torch]'`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nvae_jax.command_line import door
from nvae_jax.config.run import RunConfig
from nvae_jax.config.training import TrainingConfig
from nvae_jax.data.loading import LoadingConfig
from nvae_jax.errors import require
from nvae_jax.fields import from_mapping
from nvae_jax.interop.checkpoint import read_checkpoint
from nvae_jax.interop.official import config_from_args as model_from_args
from nvae_jax.interop.official import data_from_args, import_optimizer_state, import_state_dict
from nvae_jax.tools.options import make_parser, parse
from nvae_jax.training.optimizer import make_optimizer
from nvae_jax.training.regularizers import SpectralState
from nvae_jax.training.state import TrainState
from nvae_jax.workdir import Workdir

# Official arguments, and the fields of `TrainingConfig` that mean the same.
_TRAINING = {
    "epochs": "epochs",
    "learning_rate": "learning_rate",
    "learning_rate_min": "min_learning_rate",
    "warmup_epochs": "warmup_epochs",
    "weight_decay": "weight_decay",
    "weight_decay_norm": "regularization",
    "kl_anneal_portion": "kl_warmup",
    "kl_const_portion": "kl_constant",
}
# Where the arguments do not say: the paper's CIFAR-10.
_EPOCHS, _BATCH_SIZE = 400, 256


def training_from_args(args: Mapping[str, Any]) -> TrainingConfig:
    """The training that official arguments describe; what they lack is ours by default.

    Raises:
      ConfigError: the message names the field of ours that such training would need.
    """
    values: dict[str, Any] = {"epochs": _EPOCHS, "batch_size": _BATCH_SIZE}
    values |= {ours: args[name] for name, ours in _TRAINING.items() if name in args}
    if "batch_size" in args:  # of one process
        processes = args.get("num_process_per_node", 1) * args.get("num_proc_node", 1)
        values["batch_size"] = args["batch_size"] * processes
    if args.get("weight_decay_norm") == 0:
        values["regularization"] = 1e-30  # ours must be positive; this changes no gradient
    if args.get("weight_decay_norm_anneal"):
        values["initial_regularization"] = args["weight_decay_norm_init"]
    return from_mapping(TrainingConfig, values, "training")


def run_from_args(args: Mapping[str, Any]) -> RunConfig:
    """The run that official arguments describe.

    Raises:
      ConfigError: an argument is missing or impossible.
    """
    return RunConfig(
        model=model_from_args(args),
        data=data_from_args(args),
        loading=LoadingConfig(),
        training=training_from_args(args),
    )


def import_checkpoint(path: str | os.PathLike[str]) -> tuple[RunConfig, TrainState]:
    """The run and the state that an official checkpoint holds.

    Adamax goes on from its moments where they are saved, the learning rate and the KL's weight from
    the step. Singular vectors are never saved there, and are found anew at the first update.

    Raises:
      ConfigError: the file is missing, cannot be read, or does not fit.
    """
    checkpoint = read_checkpoint(path)
    run = run_from_args(checkpoint.args)
    model, variables = import_state_dict(checkpoint.state_dict, checkpoint.args)
    moments = import_optimizer_state(checkpoint.optimizer, model, checkpoint.state_dict)
    step = checkpoint.step if checkpoint.step is not None else moments["count"]
    state = TrainState(
        seed=jnp.uint32(run.training.seed),
        step=jnp.int32(step),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=_optimizer_state(run.training, variables["params"], moments, step),
        ema_params=None,
    )
    return run, jax.device_put(state)


def _optimizer_state(
    training: TrainingConfig, params: Any, moments: Mapping[str, Any], step: int
) -> Any:
    """The state of `make_optimizer`'s chain at `step`."""
    rng = np.random.default_rng(training.seed)

    def unit_vectors(shape: Any) -> np.ndarray:  # NumPy's: many shapes would take long to compile
        x = rng.standard_normal(shape.shape, np.float32)
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    def part_at_step(part: Any) -> Any:
        match part:
            case SpectralState():
                u, v = jax.tree.map(unit_vectors, (part.u, part.v))
                return SpectralState(jnp.int32(0), u, v, jnp.float32(0))
            case optax.ScaleByAdamState():
                count = jnp.int32(moments["count"])
                return optax.ScaleByAdamState(count, moments["mu"], moments["nu"])
            case optax.ScaleByScheduleState():
                return optax.ScaleByScheduleState(jnp.int32(step))
            case _:
                return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), part)

    optimizer = make_optimizer(training, steps_per_epoch=1)
    shapes = jax.eval_shape(optimizer.init, params)
    return type(shapes)((name, part_at_step(part)) for name, part in shapes.items())


def main() -> None:
    """Imports what the command line names."""
    parser = make_parser(__doc__)
    parser.add_argument("checkpoint", help="an official checkpoint.pt")
    parser.add_argument("--workdir", required=True, help="a new folder for the run")
    with door():
        args = parse(parser)
        workdir = Workdir(args.workdir)
        empty = not workdir.has_config()
        require("--workdir", args.workdir, empty, "a new folder, which holds no run")
        run, state = import_checkpoint(args.checkpoint)
        step = int(state.step)
        with workdir.locked(), contextlib.closing(workdir.checkpoints) as checkpoints:
            checkpoints.remove_unfinished()
            checkpoints.set_aside(checkpoints.steps())  # of an import that was interrupted
            checkpoints.save(step, state, {"step": step})
            checkpoints.wait()
            # Last, for it makes the folder that of a run.
            workdir.save_config(run.to_dict())
        number = sum(x.size for x in jax.tree.leaves(state.params))
        workdir.log(f"imported {args.checkpoint}: {number:,} parameters at step {step:,}")


if __name__ == "__main__":
    main()
