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
from nvae_jax.config.changes import ACCEPT
from nvae_jax.config.run import RunConfig
from nvae_jax.data.loader import steps_per_epoch, train_batches
from nvae_jax.data.loading import LoadingConfig
from nvae_jax.data.sources import Dataset, check_levels
from nvae_jax.evaluation.pictures import make_pictures
from nvae_jax.parallel import check_batch_size, make_mesh, replicated, shard_batch
from nvae_jax.processes import Preemption, decided, naming_the_dead
from nvae_jax.training.continuing import Going, effective_seed, with_filled_batches
from nvae_jax.training.diagnosis import REMEDIES, diagnose
from nvae_jax.training.fitting import check_memory, check_state, refusing_an_exhausted_update
from nvae_jax.training.guard import STRETCH, easing
from nvae_jax.training.program import Program, make_program
from nvae_jax.training.recorder import Recorder
from nvae_jax.training.schedules import kl_weight
from nvae_jax.training.state import TrainState
from nvae_jax.training.step import make_turns
from nvae_jax.training.validating import make_validation
from nvae_jax.training.watch import DivergenceError
from nvae_jax.workdir import Workdir
from nvae_jax.workdir.integrity import NotFiniteError
from nvae_jax.workdir.retention import Keep

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
    ignore_memory: bool = False

    @property
    def total_steps(self) -> int:
        return self.run.training.epochs * self.epoch_steps

    @property
    def eval_batch_size(self) -> int:
        return self.run.training.eval_batch_size or self.run.training.batch_size

    def check_memory(self, compiled: Any) -> None:
        """Refuses a compiled update that does not fit, unless that is to be tried."""
        if not self.ignore_memory:
            check_memory(compiled, self.mesh, self.run, self.going.step is not None)

    def batches(self, start_step: int, loading: LoadingConfig, seed: int) -> Any:
        """Training batches on the devices, the next one on its way there while one is used."""
        return train_batches(
            self.dataset,
            self.run.training.batch_size,
            seed,
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
        job = _Job(
            workdir, filled, mesh, dataset, program, going, epoch_steps, start, ignore_memory
        )
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
            updates = _Updates(job, update, state, recorder)
            state = None  # which is donated
            try:
                if not updates.run(preemption):
                    return None
                return recorder.finish(job.total_steps, updates.state)
            except (DivergenceError, NotFiniteError) as error:
                # Its traceback would keep a state alive while another one is restored.
                trouble = str(error)
            recorder.settle(updates.step)
            state = _go_back(job, updates, trouble)
            recorder.restart(int(state.step))


class _Updates:
    """The updates from a state on.

    Attributes:
      state: the last one.
      step: of the last update that is known to be done.
      batch: its images.
    """

    def __init__(self, job: _Job, update: Any, state: TrainState, recorder: Recorder):
        self._job, self._update, self._recorder = job, update, recorder
        self.state: Any = state
        self.step = int(state.step)
        self.batch: Any = None
        self._running: collections.deque[tuple[int, Any, dict[str, jax.Array]]] = (
            collections.deque()
        )

    def run(self, preemption: Preemption | None) -> bool:
        """Trains to the end, and returns whether it came to it or was asked to stop.

        Raises:
          DivergenceError: it cannot go on.
        """
        job, recorder = self._job, self._recorder
        first = step = int(self.state.step)
        seed = effective_seed(job.run.training.seed, int(self.state.health.rollbacks))
        # On CPU, updates in the queue hold their temporaries already, and gain no time.
        steps_ahead = 0 if job.mesh.devices.flat[0].platform == "cpu" else STEPS_AHEAD
        with contextlib.closing(job.batches(step, job.run.loading, seed)) as batches:
            for batch in itertools.islice(batches, job.total_steps - first):
                self.state, metrics = self._update(self.state, batch)
                step += 1
                self._running.append((step, batch, metrics))
                # A request to stop would otherwise wait for all the steps that are in the queue.
                self._wait(0 if recorder.is_due(step) or step == first + 1 else steps_ahead)
                if step == first + 1:
                    seconds = time.monotonic() - job.start
                    job.workdir.log(f"first step done {seconds:.0f} s after the start")
                    recorder.restart_clock()
                    if preemption:
                        preemption.updated()
                    if job.going.write_down():
                        recorder.expect_another_nelbo(first)
                recorder.record(step, metrics, self.state)
                if preemption and preemption.requested(step) and step < job.total_steps:
                    self._wait(0)
                    recorder.interrupt(step, metrics, self.state)
                    return False
        return True

    def _wait(self, steps_ahead: int) -> None:
        """Waits until no more updates than these are under way, and looks at the others."""
        while len(self._running) > steps_ahead:
            self.step, self.batch, metrics = self._running.popleft()
            jax.block_until_ready(metrics)
            self._recorder.skipped(self.step, metrics, self.batch["index"])


def _go_back(job: _Job, updates: _Updates, trouble: str) -> TrainState:
    """The state to go on from after a trouble.

    Raises:
      FloatingPointError: the run has gone back too often; the report is written.
    """
    health = updates.state.health
    most = job.run.training.max_rollbacks
    if int(health.recent) >= most:
        training, step = job.run.training, updates.step
        beta = kl_weight(step - 1, job.total_steps, training.kl_warmup, training.kl_constant)
        turns = make_turns(job.run.model, training, job.epoch_steps, job.run.objective)
        report = diagnose(
            job.run.model, updates.state, step, updates.batch, beta, turns, job.dataset.flip
        )
        place = job.workdir.write("report.txt", report.encode())
        raise FloatingPointError(
            f"{trouble}, and going back {most} times did not help. {place} says what went wrong "
            f"first. What helps: {REMEDIES}, each with {ACCEPT} to go on with this run."
        )
    updates.state = None
    if decided(job.workdir.checkpoints.latest_step) is None:
        state = job.going.eased(_fresh(job), health)
    else:
        state = job.going.eased(job.going.restore(job.program.state), health)
    job.workdir.log(
        f"{trouble}: going back to step {int(state.step):,}, with other draws and images in "
        f"another order, the learning rate times {float(easing(state.health)):g} and the "
        f"regularisation divided by it, for {STRETCH:,} updates"
    )
    return state


def start_or_resume(job: _Job) -> TrainState:
    """The state of the last checkpoint, or a fresh one, on the devices of the mesh."""
    if job.going.step is not None:
        state = job.going.restore(job.program.state)
        job.workdir.log(f"resumed after step {int(state.step):,}")
        return state
    return _fresh(job)


def _fresh(job: _Job) -> TrainState:
    init = compiled_together(job.program.init, "init")
    batches = job.batches(0, LoadingConfig(), job.run.training.seed)
    state = init(next(batches), np.uint32(job.run.training.seed))
    batches.close()
    count = sum(x.size for x in jax.tree.leaves(state.params))
    job.workdir.log(f"a new model of {count:,} parameters")
    return state
