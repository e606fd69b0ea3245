"""Which of a run's checkpoints are kept."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping

from etils import epath

from nvae_jax.errors import require
from nvae_jax.workdir.integrity import DamagedError
from nvae_jax.workdir.orbax import read_json, reading_checkpoint

NELBO = "validation_nelbo"  # what the metadata call it, if the state was validated


@dataclasses.dataclass(frozen=True)
class Keep:
    """Which checkpoints are kept; the others are deleted once a later one is verified.

    Attributes:
      latest: so many of the last ones.
      best: whether to keep the one with the lowest validation NELBO.
      every: those of multiples of so many steps; None: no more than the others.
    """

    latest: int = 3
    best: bool = False
    every: int | None = None

    def __post_init__(self):
        require("max_to_keep", self.latest, self.latest > 0, "1 or more")

    def chosen(self, steps: list[int], nelbo: Mapping[int, float]) -> set[int]:
        """Those of `steps` that are kept, where `nelbo` has what is known of them."""
        kept = set(sorted(steps)[-self.latest :])
        if self.every is not None:
            kept |= {step for step in steps if step % self.every == 0}
        validated = [step for step in steps if step in nelbo]
        if self.best and validated:
            kept.add(min(validated, key=lambda step: (nelbo[step], -step)))
        return kept

    def superseded(self, folder: epath.Path, steps: list[int], comparable_after: int) -> list[int]:
        """Those of the checkpoints in `folder` that are not kept.

        Args:
          folder: of checkpoints with metadata.
          steps: of all of them.
          comparable_after: the step up to which a NELBO is of other settings or images.
        """
        nelbo = {}
        for step in steps if self.best else ():
            place = folder / str(step)
            with contextlib.suppress(DamagedError), reading_checkpoint(place):
                metadata = read_json(place / "metadata")
                if NELBO in metadata:
                    nelbo[step] = metadata[NELBO]
        comparable = {step: x for step, x in nelbo.items() if step > comparable_after}
        return sorted(set(steps) - self.chosen(steps, comparable or nelbo))
