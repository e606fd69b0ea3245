"""One update of a run after the other, until the end, a request to stop, or trouble."""

from __future__ import annotations

import collections
import contextlib
import itertools
import time
from typing import Any

import jax

from nvae_jax.processes import Preemption
from nvae_jax.training.continuing import effective_seed
from nvae_jax.training.job import Job
from nvae_jax.training.recorder import Recorder
from nvae_jax.training.state import TrainState

STEPS_AHEAD = 2  # that accelerators have in their queue, so that they never wait for the host


class Updates:
    """The updates of a run from a state on.

    Args:
      job: the run.
      update: `Program.update`, compiled.
      state: the one to start from, which is donated.
      recorder: writes down what comes of them.

    Attributes:
      state: the last one.
      step: of the last update that is known to be done.
      batch: its images.
    """

    def __init__(self, job: Job, update: Any, state: TrainState, recorder: Recorder):
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
