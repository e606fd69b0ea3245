"""A whole training run in a work directory: start or resume, and train to the end."""

from __future__ import annotations

import contextlib
import os
import time

import jax

from nvae_jax.compilation import compiled_ahead
from nvae_jax.config.run import RunConfig
from nvae_jax.data.loader import steps_per_epoch
from nvae_jax.data.sources import check_levels
from nvae_jax.evaluation.pictures import make_pictures
from nvae_jax.parallel import check_batch_size, make_mesh, replicated
from nvae_jax.processes import Preemption, naming_the_dead
from nvae_jax.training.continuing import Going, check_apart, with_filled_batches
from nvae_jax.training.fitting import check_state, refusing_an_exhausted_update
from nvae_jax.training.job import Job
from nvae_jax.training.learning import NothingLearnedError
from nvae_jax.training.program import make_program
from nvae_jax.training.recorder import Recorder
from nvae_jax.training.state import TrainState
from nvae_jax.training.trouble import go_back
from nvae_jax.training.updates import Updates
from nvae_jax.training.validating import make_validation
from nvae_jax.training.watch import DivergenceError
from nvae_jax.workdir import Workdir
from nvae_jax.workdir.integrity import NotFiniteError
from nvae_jax.workdir.retention import Keep


def train(
    run: RunConfig,
    path: str | os.PathLike[str],
    preemption: Preemption | None = None,
    accept_changes: bool = False,
    ignore_memory: bool = False,
) -> dict[str, float] | None:
    """Trains a model in the work directory `path`.

    A run that was interrupted goes on from its last checkpoint, and ends with the same parameters
    as if it had not been.

    Args:
      run: what to train, on which data, and how.
      path: the work directory, new or of the run to continue.
      preemption: asked after every step whether to save and return; None: never.
      accept_changes: whether a run may go on with other settings and images than before.
      ignore_memory: whether to start although the memory seems too small.

    Returns: the record of the last validation, with `validation/nelbo` in nats per image, or what
      stands in for it (`RunConfig.criterion`); None if the run was preempted.

    Raises:
      ConfigError: the devices or the data do not fit the configuration, the data is missing or
        broken, another process trains in `path`, or it was started with another configuration.
      FloatingPointError: the run went back to its last checkpoint too often; they are all kept.
    """
    start = time.monotonic()
    training = run.training
    mesh = make_mesh(parameter_shards=training.parameter_shards)
    parts = training.accumulation_steps
    check_batch_size(mesh, training.batch_size, "training.batch_size", parts)
    if training.eval_batch_size is not None:
        check_batch_size(mesh, training.eval_batch_size, "training.eval_batch_size")
    keep = Keep(training.keep_checkpoints, training.keep_best, training.keep_every)
    workdir = Workdir(path, keep)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(workdir.checkpoints))

        def lock() -> Going:
            stack.enter_context(workdir.locked())
            return Going(workdir, run, accept_changes)

        # A run that is refused leaves no folder behind, not even for its lock.
        going = lock() if workdir.has_config() else None
        dataset = run.open_data(None if going is None else going.images)
        if going is None or going.step is None:
            check_apart(run, workdir)
            check_levels(dataset)
        filled = with_filled_batches(run, dataset, mesh)
        epoch_steps = steps_per_epoch(dataset, filled.training.batch_size)
        program = make_program(
            run.model,
            filled.training,
            epoch_steps,
            mesh,
            flip=dataset.flip,
            objective=run.objective,
        )
        if not ignore_memory:
            check_state(program.state, mesh)
        going = going or lock()  # of two first starts, the second may find a run here by now
        job = Job(workdir, filled, mesh, dataset, program, going, epoch_steps, start, ignore_memory)
        going.agree(dataset, job.total_steps)
        return _train(job, preemption)


def _train(job: Job, preemption: Preemption | None) -> dict[str, float] | None:
    workdir, model, program = job.workdir, job.run.model, job.program
    workdir.log(
        f"{job.dataset.name}: {job.total_steps:,} steps of {job.run.training.batch_size} images, "
        f"{job.epoch_steps:,} per epoch, on {job.mesh.size} {jax.default_backend()} device(s) of "
        f"{jax.process_count()} process(es); {model.total_groups} groups of latents, "
        f"{model.latent_dimensions:,} dimensions"
    )
    if job.run.training.batch_size != (asked := job.going.run.training.batch_size):
        workdir.log(
            f"training.batch_size is {job.run.training.batch_size} and not {asked}, "
            f"because there are {len(job.dataset.train):,} training images"
        )
    state = None
    if job.going.step == job.total_steps:  # there may be nothing left to train
        state = job.going.restore(program.state)
    if state is None or int(state.step) != job.total_steps:
        workdir.log(
            "compiling the update: minutes the first time, seconds later; a warning of XLA that "
            "compilation is slow can be ignored"
        )
        shapes = program.state, program.batch
        update = compiled_ahead(program.update, "update", *shapes, check=job.check_memory)
        workdir.records.reopen()
        state = state or start_or_resume(job)
    else:
        update = program.update
        job.going.write_down()
    draw = make_pictures(model, job.dataset.test, job.run.objective.has_posterior)
    recorder = Recorder(
        workdir,
        job.run,
        job.dataset,
        job.total_steps,
        int(state.step),
        validate=make_validation(job.run, job.dataset, job.eval_batch_size, job.mesh),
        draw=lambda variables: draw(jax.device_put(variables, replicated(job.mesh))),
    )
    with refusing_an_exhausted_update(job.going.step is not None), naming_the_dead():
        while True:
            updates = Updates(job, update, state, recorder)
            state = None  # which is donated
            try:
                if not updates.run(preemption):
                    return None
                return recorder.finish(job.total_steps, updates.state)
            except (DivergenceError, NotFiniteError) as error:
                # Its traceback would keep a state alive while another one is restored.
                trouble, hopeless = str(error), isinstance(error, NothingLearnedError)
            recorder.settle(updates.step)
            state = go_back(job, updates, trouble, hopeless)
            recorder.restart(int(state.step))


def start_or_resume(job: Job) -> TrainState:
    """The state of the last checkpoint, or a fresh one, on the devices of the mesh."""
    if job.going.step is not None:
        state = job.going.restore(job.program.state)
        job.workdir.log(f"resumed after step {int(state.step):,}")
        return state
    return job.fresh()
