"""Telling that a run learns nothing, although all its numbers are finite.

A learning rate that is far too high, for one, may leave a decoder that is stuck.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import SupportsFloat

from nvae_jax.config.run import RunConfig
from nvae_jax.data.baselines import pixel_entropy
from nvae_jax.data.sources import Dataset
from nvae_jax.objectives.table import ELBO
from nvae_jax.processes import decided
from nvae_jax.training.guard import STRETCH
from nvae_jax.training.watch import DivergenceError

WINDOWS = 10  # in a row that are judged together
SLACK = 0.05  # of the nats of uniform pixels, by which independent pixels may be missed
TERMS = {"reconstruction", "kl", "kl_weight"}  # of what is minimised, among the metrics
FALLS = 0.99  # of the windows before: a bound that still falls
REMEDIES = (
    "a new run, in another --workdir, with a lower --config.training.learning_rate; or, if the "
    "NELBO fell to the end, with a higher one or more --config.training.epochs"
)


class NothingLearnedError(DivergenceError):
    """A run has learned nothing; its checkpoints are no better, so that going back is no help."""


class Learning:
    """Compares what a run minimises with what independent pixels are known to reach.

    A decoder reaches as much without any latents, at every weight of the KL: it has to give every
    image the same probabilities. A run is judged from `STRETCH` updates after the warm-up of its
    learning rate, by the last `WINDOWS` windows of updates.

    Args:
      start: the step at which the warm-up ends, or from which the settings are what they are.
      limit: nats per image above which nothing is learned; asked for once, when it is needed. None:
        the run is not judged.
      past: the metrics of the windows before, of a run that goes on; those that lack a term, as
        other versions may have written them, are left out.
    """

    def __init__(
        self,
        start: int,
        limit: Callable[[], float] | None,
        past: Iterable[Mapping[str, SupportsFloat]] = (),
    ):
        self._first = start + STRETCH
        self._limit = None if limit is None else functools.cache(limit)
        whole = (means for means in past if means.keys() >= TERMS)
        self._windows: deque[float] = deque(map(_minimised, whole), maxlen=WINDOWS)

    def window(self, step: int, means: Mapping[str, SupportsFloat]) -> None:
        """Takes the mean metrics of a window of updates up to `step`.

        Raises:
          NothingLearnedError: nothing is learned, and what is minimised does not fall any more.
        """
        if self._limit is None:
            return
        self._windows.append(_minimised(means))
        half = WINDOWS // 2
        before, after = list(self._windows)[:half], list(self._windows)[half:]
        if len(after) == half and statistics.median(after) > FALLS * statistics.median(before):
            self.end(step)

    def end(self, step: int) -> None:
        """Takes the end of the run, after the last window.

        Raises:
          NothingLearnedError: nothing is learned.
        """
        if self._limit is None or step < self._first or len(self._windows) < WINDOWS:
            return
        if (least := min(self._windows)) > self._limit():
            raise NothingLearnedError(
                step,
                f"nothing is learned: the weighted NELBO is {least:.1f} nats per image at best, "
                f"above the {self._limit():.1f} of independent pixels, which require no model,",
            )


def is_judged(run: RunConfig) -> bool:
    """Whether a run minimises the weighted bound, and that of discrete pixels."""
    return run.objective == ELBO and run.has_bound and run.model.likelihood != "normal"


def independent_limit(run: RunConfig, dataset: Dataset) -> float:
    """Nats per image above which a run that is judged has learned nothing, on every process."""
    image = run.model.image
    uniform = image.num_dimensions * math.log(2) * (1 if image.binarize else image.num_bits)
    return decided(lambda: pixel_entropy(dataset.train, image)) + SLACK * uniform


def _minimised(means: Mapping[str, SupportsFloat]) -> float:
    """Of one draw per image; without the balancing of groups."""
    return float(means["reconstruction"]) + float(means["kl_weight"]) * float(means["kl"])
