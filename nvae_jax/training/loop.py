"""A whole training run in a work directory: start or resume, and train to the end."""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import os
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from nvae_jax.compilation import compiled_ahead, compiled_together
from nvae_jax.config.run import RunConfig
from nvae_jax.data.loader import steps_per_epoch, train_batches
from nvae_jax.data.loading import LoadingConfig
from nvae_jax.data.sources import Dataset
from nvae_jax.evaluation.likelihood import make_validation
from nvae_jax.evaluation.pictures import make_pictures
from nvae_jax.parallel import check_batch_size, make_mesh, replicated, shard_batch
from nvae_jax.processes import Preemption, naming_the_dead
from nvae_jax.training.continuing import Going
from nvae_jax.training.fitting import check_memory, refusing_exhausted
from nvae_jax.training.program import Program, make_program
from nvae_jax.training.recorder import Recorder
from nvae_jax.training.state import TrainState
from nvae_jax.workdir import Workdir

STEPS_AHEAD = 2  # that the devices have in their queue, so that they never wait for the host


def train(
    run: RunConfig,
    path: str | os.PathLike[str],
    preemption: Preemption | None = None,
    accept_changes: bool = False,
) -> dict[str, float] | None:
    """Trains a model in the work directory `path`.

    A run that was interrupted goes on from its last checkpoint, and ends with the same parameters
    as if it had not been.

    Args:
      run: what to train, on which data, and how.
      path: the work directory, new or of the run to continue.
      preemption: asked after every step whether to save and return; None: never.
      accept_changes: whether a run may go on with other settings and images than before.

    Returns: the record of the last validation, with `validation/nelbo` in nats per image; None if
      the run was preempted.

    Raises:
      ConfigError: the devices or the data do not fit the configuration, the data is missing or
        broken, another process trains in `path`, or it was started with another configuration.
      FloatingPointError: the loss is not finite any more; the checkpoints from before are kept.
    """
    training = run.training
    mesh = make_mesh(parameter_shards=training.parameter_shards)
    parts = training.accumulation_steps
    check_batch_size(mesh, training.batch_size, "training.batch_size", parts)
    eval_batch_size = training.eval_batch_size or training.batch_size
    check_batch_size(mesh, eval_batch_size, "training.eval_batch_size")
    workdir = Workdir(path, max_to_keep=training.keep_checkpoints)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(workdir.checkpoints))
        # A run that is refused leaves no folder behind.
        if exists := workdir.has_config():
            stack.enter_context(workdir.locked())
        going = Going(workdir, run, accept_changes)
        dataset = run.open_data()
        epoch_steps = steps_per_epoch(dataset, training.batch_size)
        program = make_program(run.model, training, epoch_steps, mesh, flip=dataset.flip)
        if not exists:
            stack.enter_context(workdir.locked())
        total_steps = training.epochs * epoch_steps
        going.agree(dataset, total_steps)
        return _train(workdir, run, mesh, going, dataset, program, preemption)


def _train(
    workdir: Workdir,
    run: RunConfig,
    mesh: Mesh,
    going: Going,
    dataset: Dataset,
    program: Program,
    preemption: Preemption | None,
) -> dict[str, float] | None:
    start = time.monotonic()
    model, training = run.model, run.training
    epoch_steps = steps_per_epoch(dataset, training.batch_size)
    total_steps = training.epochs * epoch_steps
    workdir.log(
        f"{dataset.name}: {total_steps:,} steps of {training.batch_size} images, {epoch_steps:,} "
        f"per epoch, on {mesh.size} {jax.default_backend()} device(s) of {jax.process_count()} "
        f"process(es); {model.total_groups} groups of latents, {model.latent_dimensions:,} "
        "dimensions"
    )
    if going.step != total_steps:  # or there is nothing left to train
        workdir.log(
            "compiling the update: minutes the first time, seconds later; if XLA prints that "
            "something is slow, it goes on all the same"
        )
        update = compiled_ahead(
            program.update,
            "update",
            program.state,
            program.batch,
            check=functools.partial(check_memory, mesh=mesh, training=training),
        )
        workdir.records.reopen()
    state = start_or_resume(workdir, program, going, run, dataset, mesh)
    step = int(state.step)
    workdir.records.truncate_metrics(step)
    draw = make_pictures(model, dataset.test)
    recorder = Recorder(
        workdir,
        run,
        dataset,
        total_steps,
        validate=make_validation(
            model, dataset.test, training.eval_batch_size or training.batch_size, mesh
        ),
        draw=lambda variables: draw(jax.device_put(variables, replicated(mesh))),
    )
    first = step
    running: collections.deque[dict[str, jax.Array]] = collections.deque()
    with (
        refusing_exhausted(),
        naming_the_dead(),
        contextlib.closing(_batches(dataset, run, run.loading, mesh, step)) as batches,
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
    workdir: Workdir,
    program: Program,
    going: Going,
    run: RunConfig,
    dataset: Dataset,
    mesh: Mesh,
) -> TrainState:
    """The state of the last checkpoint, or a fresh one, on the devices of the mesh."""
    if going.step is not None:
        state = going.restore(program.state)
        workdir.log(f"resumed after step {going.step:,}")
        return state
    init = compiled_together(program.init, "init")
    batches = _batches(dataset, run, LoadingConfig(), mesh, 0)
    state = init(next(batches), np.uint32(run.training.seed))
    batches.close()
    count = sum(x.size for x in jax.tree.leaves(state.params))
    workdir.log(f"a new model of {count:,} parameters")
    return state


def _batches(
    dataset: Dataset, run: RunConfig, loading: LoadingConfig, mesh: Mesh, start_step: int
) -> Any:
    """Training batches on the devices, the next one on its way there while one is used."""
    return train_batches(
        dataset,
        run.training.batch_size,
        run.training.seed,
        start_step,
        loading=loading,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        put=functools.partial(shard_batch, mesh),
    )
