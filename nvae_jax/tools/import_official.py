"""From an official PyTorch checkpoint to a work directory.

Command: python -m nvae_jax.tools.import_official checkpoint.pt --workdir DIR

The work directory holds `config.json` and one checkpoint, from which evaluation, sampling and
training can start; see `nvae_jax.interop`. It takes PyTorch: `pip install 'nvae-jax[torch]'`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from nvae_jax.config import from_mapping
from nvae_jax.interop.checkpoint import read_checkpoint
from nvae_jax.interop.official import config_from_args as model_from_args
from nvae_jax.interop.official import import_optimizer_state, import_state_dict
from nvae_jax.training.optimizer import make_optimizer
from nvae_jax.training.settings import TrainingConfig
from nvae_jax.training.spectral import SpectralState
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
# Official datasets, and ours where they have another name or options.
_DATASETS: dict[str, dict[str, str | int]] = {
    "celeba_64": {"name": "celeba64"},
    "celeba_256": {"name": "celebahq256"},
    "ffhq": {"name": "ffhq256"},
    "imagenet_32": {"name": "imagenet32"},
    "lsun_bedroom_128": {"name": "lsun", "category": "bedroom", "size": 128},
    "lsun_bedroom_256": {"name": "lsun", "category": "bedroom", "size": 256},
    "lsun_church_64": {"name": "lsun", "category": "church_outdoor", "size": 64},
    "lsun_church_128": {"name": "lsun", "category": "church_outdoor", "size": 128},
}
# Where the arguments do not say: the paper's CIFAR-10.
_EPOCHS, _BATCH_SIZE = 400, 256


def training_from_args(args: Mapping[str, Any]) -> TrainingConfig:
    """The training that official arguments describe; what they lack is ours by default.

    Raises: ValueError naming the field of ours that such training would need.
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


def config_from_args(args: Mapping[str, Any]) -> ConfigDict:
    """The configuration of a run: the sections `model`, `data` and `training`.

    Raises: ValueError naming the argument or field that is missing or impossible.
    """
    model, training = model_from_args(args), training_from_args(args)
    dataset = args["dataset"]
    return ConfigDict(
        {
            "model": dataclasses.asdict(model),
            "data": _DATASETS.get(dataset, {"name": dataset}),
            "training": dataclasses.asdict(training),
        }
    )


def import_checkpoint(path: str | os.PathLike[str]) -> tuple[ConfigDict, TrainState]:
    """What an official checkpoint holds, as a run's configuration and state.

    Adamax goes on from its moments where they are saved, the learning rate and the KL's weight from
    the step. Singular vectors are never saved there, and are found anew at the first update.

    Raises: FileNotFoundError if there is no such file, ValueError if it cannot be read or does not
      fit.
    """
    checkpoint = read_checkpoint(path)
    config, training = config_from_args(checkpoint.args), training_from_args(checkpoint.args)
    model, variables = import_state_dict(checkpoint.state_dict, checkpoint.args)
    moments = import_optimizer_state(checkpoint.optimizer, model, checkpoint.state_dict)
    step = checkpoint.step if checkpoint.step is not None else moments["count"]
    state = TrainState(
        seed=jnp.uint32(training.seed),
        step=jnp.int32(step),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=_optimizer_state(training, variables["params"], moments, step),
        ema_params=None,
    )
    return config, jax.device_put(state)


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
    return tuple(part_at_step(part) for part in jax.eval_shape(optimizer.init, params))


def main() -> None:
    """Imports what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="an official checkpoint.pt")
    parser.add_argument("--workdir", required=True, help="a new folder for the run")
    args = parser.parse_args()
    try:
        config, state = import_checkpoint(args.checkpoint)
        with contextlib.closing(Workdir(args.workdir)) as workdir:
            if workdir.latest_step() is not None:
                raise ValueError(f"{workdir.path} holds checkpoints already")
            step = int(state.step)
            workdir.save_config(config)
            workdir.save(step, state, {"step": step})
            number = sum(x.size for x in jax.tree.leaves(state.params))
            workdir.log(f"imported {args.checkpoint}: {number:,} parameters at step {step:,}")
    except (FileNotFoundError, ImportError, ValueError) as error:
        parser.exit(1, f"import_official: {error}\n")


if __name__ == "__main__":
    main()
