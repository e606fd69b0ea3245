"""A whole training run in a work directory: start or resume, and train to the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nvae_jax.config import from_mapping
from nvae_jax.data.loader import steps_per_epoch, train_batches
from nvae_jax.data.sources import Dataset, make_dataset
from nvae_jax.data.transforms import prepare_train
from nvae_jax.evaluation.likelihood import make_validation
from nvae_jax.evaluation.pictures import make_pictures
from nvae_jax.model.architecture import ModelConfig
from nvae_jax.parallel import (
    batch_sharding,
    check_batch_size,
    make_mesh,
    replicated,
    shard_batch,
)
from nvae_jax.training.optimizer import make_optimizer
from nvae_jax.training.recorder import Recorder
from nvae_jax.training.settings import TrainingConfig
from nvae_jax.training.state import TrainState, init_state
from nvae_jax.training.step import make_train_step
from nvae_jax.workdir import Workdir

SECTIONS = ("model", "data", "training")

Batch = dict[str, Array]


def read_config(config: ConfigDict) -> tuple[ModelConfig, Dataset, TrainingConfig]:
    """The validated parts of a run's configuration.

    Raises: ValueError naming the field that is unknown, impossible, or at odds with the data.
    """
    for name in config:
        if name not in SECTIONS:
            raise ValueError(f"{name} is unknown; allowed: {', '.join(SECTIONS)}")
    model = from_mapping(ModelConfig, config.model, "model")
    training = from_mapping(TrainingConfig, config.training, "training")
    dataset = make_dataset(**config.data)
    for name in ("image_shape", "border"):
        ours, theirs = getattr(model, name), getattr(dataset, name)
        if ours != theirs:
            raise ValueError(f"model.{name} is {ours}; allowed: {theirs}, as {dataset.name} has it")
    if (model.likelihood == "bernoulli") != dataset.binarize:
        allowed = "bernoulli" if dataset.binarize else "logistic_mixture, normal"
        raise ValueError(
            f"model.likelihood is {model.likelihood!r}; allowed for {dataset.name}: {allowed}"
        )
    return model, dataset, training


def train(config: ConfigDict, path: str) -> dict[str, float]:
    """Trains the model that `config` describes, in the work directory `path`.

    A run that was interrupted goes on from its last checkpoint, and ends with the same parameters
    as if it had not been.

    Returns: the record of the last validation, `validation/nelbo` in nats an image among it.

    Raises:
      ValueError: the configuration is impossible, or not the one that `path` was started with.
      FloatingPointError: the loss is not finite any more; the checkpoints from before are kept.
    """
    start = time.monotonic()
    model, dataset, training = read_config(config)
    mesh = make_mesh()
    eval_batch_size = training.eval_batch_size or training.batch_size
    check_batch_size(mesh, training.batch_size, "training.batch_size")
    check_batch_size(mesh, eval_batch_size, "training.eval_batch_size")
    epoch_steps = steps_per_epoch(dataset, training.batch_size)
    total_steps = training.epochs * epoch_steps

    workdir = Workdir(path, max_to_keep=training.keep_checkpoints)
    workdir.save_config(config)
    workdir.log(
        f"{dataset.name}: {total_steps:,} steps of {training.batch_size} images, {epoch_steps:,} "
        f"an epoch, on {mesh.size} {jax.default_backend()} device(s); {model.total_groups} groups "
        f"of latents, {model.latent_dimensions:,} dimensions"
    )
    prepare = make_preparation(model, dataset, training)
    state = start_or_resume(workdir, model, dataset, training, mesh, prepare)
    step = int(state.step)
    workdir.truncate_metrics(step)
    recorder = Recorder(
        workdir,
        model,
        dataset,
        training,
        total_steps,
        validate=make_validation(model, dataset, eval_batch_size, mesh),
        draw=make_pictures(model, dataset),
    )
    train_step = make_train_step(model, training, epoch_steps)
    update = jax.jit(
        lambda state, batch: train_step(state, prepare(batch)),
        in_shardings=(replicated(mesh), batch_sharding(mesh)),
        out_shardings=replicated(mesh),
        donate_argnums=0,
    )
    batches = _batches(dataset, training, step)
    first = step
    for batch in batches:
        if step == total_steps:
            break
        state, metrics = update(state, shard_batch(mesh, batch))
        step += 1
        if step == first + 1:
            jax.block_until_ready(metrics)
            workdir.log(f"first step done {time.monotonic() - start:.0f} s after the start")
            recorder.restart_clock()
        recorder.record(step, metrics, state)
    batches.close()
    return recorder.finish()


def make_preparation(
    model: ModelConfig, dataset: Dataset, training: TrainingConfig
) -> Callable[[Batch], Array]:
    """A function from a loader's batch to what the model sees, (B, H, W, C) in [0, 1]."""
    # Not the key of the steps' own draws.
    key = jax.random.fold_in(jax.random.key(training.seed), 2**31 - 1)

    def prepare(batch: Batch) -> Array:
        return prepare_train(
            batch["image"],
            batch["index"],
            batch["epoch"],
            seed_key=key,
            binarize=dataset.binarize,
            flip=dataset.flip,
            num_bits=model.num_bits,
        )

    return prepare


def start_or_resume(
    workdir: Workdir,
    model: ModelConfig,
    dataset: Dataset,
    training: TrainingConfig,
    mesh: Mesh,
    prepare: Callable[[Batch], Array],
) -> TrainState:
    """The state of the last checkpoint, or a fresh one, on every device of the mesh."""
    optimizer = make_optimizer(training, steps_per_epoch(dataset, training.batch_size))

    def init(batch: Batch) -> TrainState:
        # This kind of key, because XLA's CPU backend compiles its draws in half the time, and there
        # are hundreds. It is no less random than initial values need.
        key = jax.random.key(training.seed, impl="unsafe_rbg")
        return init_state(model, optimizer, key, prepare(batch), training.ema_decay is not None)

    batches = _batches(dataset, training, 0)
    batch = shard_batch(mesh, next(batches))
    batches.close()
    latest = workdir.latest_step()
    if latest is None:
        state = jax.jit(init, out_shardings=replicated(mesh))(batch)
        count = sum(x.size for x in jax.tree.leaves(state.params))
        workdir.log(f"a new model of {count:,} parameters")
        return state
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)),
        jax.eval_shape(init, batch),
    )
    state, _ = workdir.restore(abstract)
    workdir.log(f"resumed after step {latest:,}")
    return state


def _batches(dataset: Dataset, training: TrainingConfig, start_step: int) -> Any:
    return train_batches(
        dataset,
        training.batch_size,
        training.seed,
        start_step,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
