"""What goes wrong in the runs of `faulty.py`, and the small model that these train."""

import dataclasses
from collections.abc import Callable, Container
from typing import Any

import numpy as np

SEEDS = (0, 1, 2)
AT = 100  # the update at which a fault begins, between two checkpoints
DUE = 120  # a checkpoint is due
MODEL = {
    "num_scales": 1,
    "num_groups": 2,
    "num_blocks": 0,
    "num_latents": 2,
    "encoder_channels": 4,
    "decoder_channels": 4,
    "encoder_cells": 1,
    "decoder_cells": 1,
    "preprocess_cells": 1,
    "postprocess_cells": 1,
    "architecture": "res_bnswish",
}
RATE = 0.05  # of a model this small
TRAINING = {
    "epochs": 12,
    "batch_size": 64,
    "learning_rate": RATE,
    "warmup_epochs": 1,
    "log_interval": 10,
    "eval_interval": 80,
    "picture_interval": 10**6,
    "checkpoint_interval": 40,
    "drift_batches": 0,
    "eval_batch_size": 64,
}
TRAIN = 1500  # images; the others are tested on
EPOCH = TRAIN // TRAINING["batch_size"]
STEPS = TRAINING["epochs"] * EPOCH

# What a batch's field `epoch` says, beside the epoch, to the update of `faulty.py`.
GRADIENT, LEVELS = -1, -2


def _mark(kind: int) -> Callable[[Any], Any]:
    return lambda batch: batch | {"epoch": np.full_like(batch["epoch"], kind)}


def _noise(batch: Any) -> Any:
    """Random bytes in place of images."""
    rng = np.random.default_rng(0)
    return batch | {"image": rng.integers(0, 256, batch["image"].shape, np.uint8)}


@dataclasses.dataclass(frozen=True)
class Fault:
    """What goes wrong in a run.

    Attributes:
      name: for the table.
      batch: from a batch to what is delivered in its place.
      leaf: the dotted name of an array of the state in which a number becomes infinite.
      steps: the updates at which that happens.
      always: whether it also happens after the run has gone back.
      changes: other values of fields of the configuration, by dotted names.
    """

    name: str
    batch: Callable[[Any], Any] | None = None
    leaf: str | None = None
    steps: Container[int] = ()
    always: bool = False
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)

    def strikes(self, step: int, gone_back: bool) -> bool:
        return step in self.steps and (self.always or not gone_back)


_EVER = range(AT, 10**9)
_FROM_THE_START = range(1, 10**9)
FAULTS = (
    Fault("none"),
    Fault("gradient NaN at one update", _mark(GRADIENT), steps=[AT]),
    Fault("gradient NaN at three in a row", _mark(GRADIENT), steps=range(AT, AT + 3)),
    Fault("gradient NaN at ten in a row", _mark(GRADIENT), steps=range(AT, AT + 10)),
    Fault("gradient NaN from then on", _mark(GRADIENT), steps=_EVER, always=True),
    Fault("gradient NaN where a checkpoint is due", _mark(GRADIENT), steps=[DUE]),
    Fault("gradient NaN at the last update", _mark(GRADIENT), steps=[STEPS]),
    Fault("gradient NaN at the last two updates", _mark(GRADIENT), steps=[STEPS - 1, STEPS]),
    Fault("a batch of random bytes", _noise, steps=[AT]),
    Fault("ten batches of random bytes", _noise, steps=range(AT, AT + 10)),
    Fault(
        "ten batches of random bytes, skip_threshold=6",
        _noise,
        steps=range(AT, AT + 10),
        changes={"training.skip_threshold": 6.0},
    ),
    Fault("a batch of pixels up to 255", _mark(LEVELS), steps=[AT]),
    Fault("ten batches of pixels up to 255", _mark(LEVELS), steps=range(AT, AT + 10)),
    Fault(
        "ten updates left out, for comparison",
        _mark(GRADIENT),
        steps=range(AT, AT + 10),
        changes={"training.max_skipped": 20},
    ),
    Fault("all pixels up to 255", _mark(LEVELS), steps=_FROM_THE_START, always=True),
    Fault("images divided by 255 before they were stored", changes={"data.path": "dark.npz"}),
    *(
        Fault(f"learning rate times {factor:,}", changes={"training.learning_rate": RATE * factor})
        for factor in (10, 100, 1000)
    ),
    Fault(
        "batches of 2",
        changes={
            "training.batch_size": 2,
            "training.epochs": 2,
            "training.log_interval": 50,
            "training.eval_interval": 500,
            "training.checkpoint_interval": 250,
            "training.drift_batches": 2,
        },
    ),
)
