"""What becomes of a run that cannot go on from its state: it goes back, or ends with a report."""

from __future__ import annotations

from typing import NoReturn

from nvae_jax.config.changes import ACCEPT
from nvae_jax.data.loading import LoadingConfig
from nvae_jax.processes import decided
from nvae_jax.training import learning
from nvae_jax.training.diagnosis import REMEDIES, diagnose
from nvae_jax.training.guard import STRETCH, easing
from nvae_jax.training.job import Job
from nvae_jax.training.schedules import kl_weight
from nvae_jax.training.state import TrainState
from nvae_jax.training.step import make_turns
from nvae_jax.training.updates import Updates


def go_back(job: Job, updates: Updates, trouble: str, hopeless: bool = False) -> TrainState:
    """The state to go on from after a trouble: that of the last checkpoint, eased.

    Args:
      job: the run.
      updates: of which the last brought the trouble; their state is let go before another one is
        restored.
      trouble: what is wrong.
      hopeless: whether the checkpoints are no better.

    Raises:
      FloatingPointError: that would not help, or has not helped often enough; the report is
        written.
    """
    if hopeless:
        _end(job, updates, trouble, learning.REMEDIES)
    health, most = updates.state.health, job.run.training.max_rollbacks
    if int(health.recent) >= most:
        failed = f"{trouble}, and going back {most} times did not help"
        _end(job, updates, failed, f"{REMEDIES}, each with {ACCEPT} to go on with this run")
    updates.state = None
    if decided(job.workdir.checkpoints.latest_step) is None:
        state = job.going.eased(job.fresh(), health)
    else:
        state = job.going.eased(job.going.restore(job.program.state), health)
    job.workdir.log(
        f"{trouble}: going back to step {int(state.step):,}, with other draws and images in "
        f"another order, the learning rate times {float(easing(state.health)):g} and the "
        f"regularisation divided by it, for {STRETCH:,} updates"
    )
    return state


def _end(job: Job, updates: Updates, trouble: str, remedies: str) -> NoReturn:
    training, state, step = job.run.training, updates.state, updates.step
    batch = updates.batch
    if batch is None:  # of a run that was at its end when it started
        batches = job.batches(step - 1, LoadingConfig(), int(state.seed))
        batch = next(batches)
        batches.close()
    beta = kl_weight(step - 1, job.total_steps, training.kl_warmup, training.kl_constant)
    turns = make_turns(job.run.model, training, job.epoch_steps, job.run.objective)
    flip = job.dataset.flip
    report = diagnose(job.run.model, state, step, batch, beta, turns, flip, remedies)
    place = job.workdir.write("report.txt", report.encode())
    raise FloatingPointError(
        f"{trouble}. {place} says what went wrong first. What helps: {remedies}."
    )
