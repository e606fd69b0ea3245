"""A whole training run in a work directory: start or resume, and train to the end."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
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

STEPS_AHEAD = 2  # that accelerators have in their queue, so that they never wait for the host


@dataclasses.dataclass(frozen=True)
class _Job:
    """A run with its folder, devices, data and functions, ready to be trained."""

    workdir: Workdir
    run: RunConfig
    mesh: Mesh
    dataset: Dataset
    program: Program
    going: Going
    epoch_steps: int
    start: float  # of `train`, in seconds of the monotonic clock

    @property
    def total_steps(self) -> int:
        return self.run.training.epochs * self.epoch_steps

    @property
    def eval_batch_size(self) -> int:
        return self.run.training.eval_batch_size or self.run.training.batch_size

    def batches(self, start_step: int, loading: LoadingConfig) -> Any:
        """Training batches on the devices, the next one on its way there while one is used."""
        return train_batches(
            self.dataset,
            self.run.training.batch_size,
            self.run.training.seed,
            start_step,
            loading=loading,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            put=functools.partial(shard_batch, self.mesh),
        )


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
    start = time.monotonic()
    training = run.training
    mesh = make_mesh(parameter_shards=training.parameter_shards)
    parts = training.accumulation_steps
    check_batch_size(mesh, training.batch_size, "training.batch_size", parts)
    if training.eval_batch_size is not None:
        check_batch_size(mesh, training.eval_batch_size, "training.eval_batch_size")
    workdir = Workdir(path, max_to_keep=training.keep_checkpoints)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(workdir.checkpoints))
        # A run that is refused leaves no folder behind, not even for its lock.
        if exists := workdir.has_config():
            stack.enter_context(workdir.locked())
        going = Going(workdir, run, accept_changes)
        dataset = run.open_data()
        epoch_steps = steps_per_epoch(dataset, training.batch_size)
        program = make_program(run.model, training, epoch_steps, mesh, flip=dataset.flip)
        if not exists:
            stack.enter_context(workdir.locked())
        job = _Job(workdir, run, mesh, dataset, program, going, epoch_steps, start)
        going.agree(dataset, job.total_steps)
        return _train(job, preemption)


def _train(job: _Job, preemption: Preemption | None) -> dict[str, float] | None:
    workdir, model, program = job.workdir, job.run.model, job.program
    workdir.log(
        f"{job.dataset.name}: {job.total_steps:,} steps of {job.run.training.batch_size} images, "
        f"{job.epoch_steps:,} per epoch, on {job.mesh.size} {jax.default_backend()} device(s) of "
        f"{jax.process_count()} process(es); {model.total_groups} groups of latents, "
        f"{model.latent_dimensions:,} dimensions"
    )
    if job.going.step != job.total_steps:  # or there is nothing left to train
        workdir.log(
            "compiling the update: minutes the first time, seconds later; if XLA prints that "
            "something is slow, it goes on all the same"
        )
        check = functools.partial(check_memory, mesh=job.mesh, training=job.run.training)
        shapes = program.state, program.batch
        update = compiled_ahead(program.update, "update", *shapes, check=check)
        workdir.records.reopen()
    state = start_or_resume(job)
    first = step = int(state.step)
    workdir.records.truncate_metrics(step)
    draw = make_pictures(model, job.dataset.test)
    recorder = Recorder(
        workdir,
        job.run,
        job.dataset,
        job.total_steps,
        validate=make_validation(model, job.dataset.test, job.eval_batch_size, job.mesh),
        draw=lambda variables: draw(jax.device_put(variables, replicated(job.mesh))),
    )
    running: collections.deque[dict[str, jax.Array]] = collections.deque()
    # On CPU, updates in the queue hold their temporaries already, and gain no time.
    steps_ahead = 0 if job.mesh.devices.flat[0].platform == "cpu" else STEPS_AHEAD
    with (
        refusing_exhausted(),
        naming_the_dead(),
        contextlib.closing(job.batches(step, job.run.loading)) as batches,
    ):
        for batch in itertools.islice(batches, job.total_steps - first):
            state, metrics = update(state, batch)
            step += 1
            # A request to stop would otherwise wait for all the steps that are in the queue.
            running.append(metrics)
            if len(running) > steps_ahead:
                jax.block_until_ready(running.popleft())
            if step == first + 1:
                jax.block_until_ready(metrics)
                workdir.log(f"first step done {time.monotonic() - job.start:.0f} s after the start")
                recorder.restart_clock()
            recorder.record(step, metrics, state)
            if preemption and preemption.requested(step) and step < job.total_steps:
                recorder.interrupt(step, metrics, state)
                return None
        return recorder.finish()


def start_or_resume(job: _Job) -> TrainState:
    """The state of the last checkpoint, or a fresh one, on the devices of the mesh."""
    if job.going.step is not None:
        state = job.going.restore(job.program.state)
        job.workdir.log(f"resumed after step {job.going.step:,}")
        return state
    init = compiled_together(job.program.init, "init")
    batches = job.batches(0, LoadingConfig())
    state = init(next(batches), np.uint32(job.run.training.seed))
    batches.close()
    count = sum(x.size for x in jax.tree.leaves(state.params))
    job.workdir.log(f"a new model of {count:,} parameters")
    return state
