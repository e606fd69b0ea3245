"""Deciding, from what a run measures, that it has to go back to its last checkpoint.

Every process of a run sees the same numbers, so that all decide alike, and at the same step.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable

from nvae_jax.training.criterion import NELBO, Criterion

JUMP = 2.0  # times the usual NELBO: a jump
STAYS = 3  # windows in a row that are up
USUAL = 10  # windows that say what is usual
ROUNDING = 1.0  # nats by which a NELBO may be below the lowest


class DivergenceError(Exception):
    """A run cannot go on as it is.

    Attributes:
      step: the last update that was done.
      reason: half a sentence.
    """

    def __init__(self, step: int, reason: str):
        super().__init__(f"{reason} at step {step:,}")
        self.step = step
        self.reason = reason


class Watch:
    """Looks at the NELBO, or another criterion, of every window of updates.

    Args:
      past: the NELBO of the windows before, of a run that goes on.
      criterion: what it is.
    """

    def __init__(self, past: Iterable[float] = (), criterion: Criterion = NELBO):
        self._criterion = criterion
        self._windows: list[float] = []
        self._up = 0
        for nelbo in past:
            self._see(nelbo)

    @property
    def suspicious(self) -> bool:
        """Whether the NELBO has jumped, so that the state is not to be saved until it is back."""
        return self._up > 0

    def window(self, step: int, nelbo: float) -> None:
        """Takes the mean NELBO of a window of updates, in nats per image, up to `step`.

        Raises:
          DivergenceError: it has jumped, and stays up; or it is impossible.
        """
        kind = self._criterion
        if nelbo < kind.lowest - ROUNDING:
            value = f"{kind.brief(nelbo)}{kind.unit}"
            raise DivergenceError(
                step, f"the {kind.title} is {value}, and pixels from 0 to 1 have none below 0"
            )
        self._see(nelbo)
        if self._up >= STAYS:
            usual = statistics.median(self._windows)
            change = f"{kind.brief(usual)} to {kind.brief(nelbo)}{kind.unit}"
            raise DivergenceError(step, f"the {kind.title} has jumped from {change}")

    def end(self, step: int) -> None:
        """Takes the end of the run.

        Raises:
          DivergenceError: the NELBO is up, and no window is left that could show that it stays.
        """
        if self.suspicious:
            raise DivergenceError(
                step, f"the {self._criterion.title} has jumped in the last windows"
            )

    def skipped(self, step: int, in_a_row: int, most: int) -> None:
        """Takes the number of updates that were left out one after the other.

        Raises:
          DivergenceError: there are `most` of them.
        """
        if in_a_row >= most:
            raise DivergenceError(step, f"{in_a_row} updates in a row are left out")

    def validation(self, step: int, nelbo: float) -> None:
        """Takes a validation.

        Raises:
          DivergenceError: it is not finite.
        """
        if not math.isfinite(nelbo):
            raise DivergenceError(step, f"the validation {self._criterion.title} is {nelbo}")

    def _see(self, nelbo: float) -> None:
        if len(self._windows) >= STAYS:
            usual = statistics.median(self._windows)
            if not nelbo <= usual + (JUMP - 1) * abs(usual):
                self._up += 1
                return
        self._up = 0
        self._windows = [*self._windows, nelbo][-USUAL:]
