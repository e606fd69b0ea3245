"""A whole training run in a work directory: start or resume, and train to the end."""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nvae_jax.config import ConfigError, from_mapping
from nvae_jax.data.loader import LoadingConfig, steps_per_epoch, train_batches
from nvae_jax.data.sources import Dataset, make_dataset
from nvae_jax.evaluation.likelihood import make_validation
from nvae_jax.evaluation.pictures import make_pictures
from nvae_jax.model.architecture import ModelConfig
from nvae_jax.parallel import check_batch_size, make_mesh, replicated, shard_batch
from nvae_jax.processes import Preemption, compiled_ahead, compiled_together, naming_the_dead
from nvae_jax.training.program import Program, make_program
from nvae_jax.training.recorder import Recorder
from nvae_jax.training.settings import TrainingConfig
from nvae_jax.training.state import TrainState
from nvae_jax.workdir import Workdir

STEPS_AHEAD = 2  # that the devices have in their queue, so that they never wait for the host

SECTIONS = ("model", "data", "loading", "training")

# Fields that a run may be continued with other values of: they change how it is computed, where its
# images are and what is written, not what is learned.
ADJUSTABLE = (
    "data.data_dir",
    "data.lmdb",
    "data.path",
    "loading.num_workers",
    "loading.prefetch",
    "model.remat",
    "model.unroll",
    "training.parameter_shards",
    "training.log_interval",
    "training.eval_interval",
    "training.picture_interval",
    "training.checkpoint_interval",
    "training.keep_checkpoints",
    "training.eval_batch_size",
)


def read_config(config: ConfigDict) -> tuple[ModelConfig, Dataset, TrainingConfig]:
    """The validated parts of a run's configuration.

    Raises: ValueError naming the field that is unknown, impossible, or at odds with the data.
    """
    for name in config:
        if name not in SECTIONS:
            raise ValueError(f"{name} is unknown; allowed: {', '.join(SECTIONS)}")
    model = from_mapping(ModelConfig, config.model, "model")
    training = from_mapping(TrainingConfig, config.training, "training")
    read_loading(config)
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


def read_loading(config: ConfigDict) -> LoadingConfig:
    """How the configuration says to read; all of it may be left out.

    Raises: ValueError naming the field that is unknown or impossible.
    """
    return from_mapping(LoadingConfig, config.get("loading", {}), "loading")


def train(
    config: ConfigDict, path: str, preemption: Preemption | None = None
) -> dict[str, float] | None:
    """Trains the model that `config` describes, in the work directory `path`.

    A run that was interrupted goes on from its last checkpoint, and ends with the same parameters
    as if it had not been.

    Args:
      config: as `configs/default.py` describes it.
      path: new, or of the run to go on with.
      preemption: asked after every step whether to save and return.

    Returns: the record of the last validation, `validation/nelbo` in nats an image among it; None
      if the run was preempted.

    Raises:
      ConfigError: the configuration is impossible, or not the one that `path` was started with.
      FloatingPointError: the loss is not finite any more; the checkpoints from before are kept.
    """
    start = time.monotonic()
    try:
        model, dataset, training = read_config(config)
        mesh = make_mesh(parameter_shards=training.parameter_shards)
        eval_batch_size = training.eval_batch_size or training.batch_size
        check_batch_size(mesh, eval_batch_size, "training.eval_batch_size")
        epoch_steps = steps_per_epoch(dataset, training.batch_size)
        program = make_program(
            model, training, epoch_steps, mesh, binarize=dataset.binarize, flip=dataset.flip
        )
        workdir = Workdir(path, max_to_keep=training.keep_checkpoints)
        workdir.save_config(config, adjustable=ADJUSTABLE)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    total_steps = training.epochs * epoch_steps
    workdir.log(
        f"{dataset.name}: {total_steps:,} steps of {training.batch_size} images, {epoch_steps:,} "
        f"an epoch, on {mesh.size} {jax.default_backend()} device(s) of {jax.process_count()} "
        f"process(es); {model.total_groups} groups of latents, {model.latent_dimensions:,} "
        "dimensions"
    )
    if workdir.latest_step() != total_steps:  # or there is nothing left to train
        update = compiled_ahead(program.update, "update", program.state, program.batch)
    state = start_or_resume(workdir, program, dataset, training, mesh)
    step = int(state.step)
    workdir.truncate_metrics(step)
    draw = make_pictures(model, dataset)
    recorder = Recorder(
        workdir,
        model,
        dataset,
        training,
        total_steps,
        validate=make_validation(model, dataset, eval_batch_size, mesh),
        draw=lambda variables: draw(jax.device_put(variables, replicated(mesh))),
    )
    first = step
    running: collections.deque[dict[str, jax.Array]] = collections.deque()
    loading = read_loading(config)
    with (
        naming_the_dead(),
        contextlib.closing(_batches(dataset, training, loading, mesh, step)) as batches,
    ):
        for batch in itertools.islice(batches, total_steps - first):
            state, metrics = update(state, batch)
            step += 1
            # A request to stop would otherwise wait for all the steps that are in the queue.
            running.append(metrics)
            if len(running) > STEPS_AHEAD:
                jax.block_until_ready(running.popleft())
            if step == first + 1:
                jax.block_until_ready(metrics)
                workdir.log(f"first step done {time.monotonic() - start:.0f} s after the start")
                recorder.restart_clock()
            recorder.record(step, metrics, state)
            if preemption and preemption.requested(step) and step < total_steps:
                recorder.interrupt(step, metrics, state)
                return None
        return recorder.finish()


def start_or_resume(
    workdir: Workdir, program: Program, dataset: Dataset, training: TrainingConfig, mesh: Mesh
) -> TrainState:
    """The state of the last checkpoint, or a fresh one, on the devices of the mesh."""
    latest = workdir.latest_step()
    if latest is not None:
        state, _ = workdir.restore(program.state)
        workdir.log(f"resumed after step {latest:,}")
        return state
    init = compiled_together(program.init, "init")
    batches = _batches(dataset, training, LoadingConfig(), mesh, 0)
    state = init(next(batches), np.uint32(training.seed))
    batches.close()
    count = sum(x.size for x in jax.tree.leaves(state.params))
    workdir.log(f"a new model of {count:,} parameters")
    return state


def _batches(
    dataset: Dataset, training: TrainingConfig, loading: LoadingConfig, mesh: Mesh, start_step: int
) -> Any:
    """Training batches on the devices, the next one on its way there while one is used."""
    return train_batches(
        dataset,
        training.batch_size,
        training.seed,
        start_step,
        loading=loading,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        put=functools.partial(shard_batch, mesh),
    )
