"""How a model is trained: the section `training` of a configuration."""

from __future__ import annotations

import dataclasses
from typing import Literal

from nvae_jax.errors import require
from nvae_jax.fields import require_literals
from nvae_jax.objectives.base import BalanceRule


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """The section `training`, in the terms of the paper (NVAE, §3.2 and appendix A).

    Raises:
      ConfigError: a value is impossible; the message names the field.
    """

    epochs: int
    batch_size: int  # images per step, over all devices
    seed: int = 0

    # How devices share an update.
    accumulation_steps: int = 1  # parts of a batch that are computed one by one, to save memory
    parameter_shards: int = 1  # devices that share one copy of the parameters, to save memory

    # The optimiser, with a linear warm-up and then a cosine that changes from epoch to epoch.
    optimizer: Literal["adamax", "adam"] = "adamax"
    learning_rate: float = 1e-2  # peak
    min_learning_rate: float = 1e-4
    warmup_epochs: int = 5
    weight_decay: float = 3e-4  # L2, in the gradient
    gradient_clip: float | None = None  # largest global norm, regularisers included; None: no limit
    ema_decay: float | None = None  # of the averaged parameters that evaluation uses; None: none

    # The KL's weight rises from 0 to 1; until it gets there, groups are balanced.
    kl_warmup: float = 0.3  # fraction of training over which it rises
    kl_constant: float = 1e-4  # fraction of training before that
    kl_balance: BalanceRule = "square"  # how groups are weighted

    # Weight of the spectral and the batch-norm penalty; 0: there are none.
    regularization: float = 1e-2
    initial_regularization: float | None = None  # start of a geometric path along the KL warm-up

    # What to do about updates that are not finite; see docs/runs.md.
    max_skipped: int = 5  # so many are left out in a row before the run goes back
    max_rollbacks: int = 3  # how often it goes back before it ends
    skip_threshold: float | None = None  # standard deviations of the log gradient norm that make
    # an outlier, which is left out too; None: only what is not finite

    # What is written, and how often, in steps; it is always written after the last step.
    log_interval: int = 100
    eval_interval: int = 1000
    picture_interval: int = 1000
    checkpoint_interval: int = 1000
    keep_checkpoints: int = 2  # the latest ones
    keep_best: bool = True  # beside them, the one with the lowest validation NELBO
    keep_every: int | None = None  # and those of multiples of so many steps
    eval_batch_size: int | None = None  # None: batch_size

    # Batch norm in validation: its running statistics, their averages by ema_decay, or those of so
    # many batches of training images; and on how many batches they are compared with the batches'.
    eval_statistics: Literal["running", "averaged", "training"] = "running"
    recalibration_batches: int = 50
    drift_batches: int = 2  # 0: not compared

    def __post_init__(self):
        positive = (
            "epochs",
            "batch_size",
            "accumulation_steps",
            "parameter_shards",
            "learning_rate",
            "initial_regularization",
            "gradient_clip",
            "log_interval",
            "eval_interval",
            "picture_interval",
            "checkpoint_interval",
            "keep_checkpoints",
            "keep_every",
            "max_skipped",
            "skip_threshold",
            "eval_batch_size",
            "recalibration_batches",
        )
        for name in positive:
            value = getattr(self, name)
            self._require(name, value is None or value > 0, "a positive number")
        for name in ("epochs", "batch_size", "accumulation_steps", "parameter_shards"):
            self._require(name, getattr(self, name) <= 10**6, "1 to 1000000")
        self._require("keep_best", isinstance(self.keep_best, bool), "True or False")
        self._require("drift_batches", self.drift_batches >= 0, "0 or more")
        self._require("max_rollbacks", self.max_rollbacks >= 0, "0 or more")
        self._require("seed", 0 <= self.seed < 2**32, "0 to 2**32 - 1")
        for name in ("weight_decay", "min_learning_rate", "regularization"):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        path = self.initial_regularization is None or self.regularization > 0
        allowed = "None with training.regularization = 0"
        self._require("initial_regularization", path, allowed)
        for name in ("kl_warmup", "kl_constant"):
            self._require(name, 0 <= getattr(self, name) <= 1, "0 to 1")
        self._require("ema_decay", self.ema_decay is None or 0 < self.ema_decay < 1, "in (0, 1)")
        require_literals(self, "training.")
        averages = self.eval_statistics != "averaged" or self.ema_decay is not None
        self._require("eval_statistics", averages, "'averaged' with training.ema_decay")
        last = f"0 to epochs - 1 ({self.epochs - 1})"
        self._require("warmup_epochs", 0 <= self.warmup_epochs < self.epochs, last)
        lowest = f"at most learning_rate ({self.learning_rate})"
        self._require("min_learning_rate", self.min_learning_rate <= self.learning_rate, lowest)

    def _require(self, name: str, condition: bool, allowed: str):
        require(f"training.{name}", getattr(self, name), condition, allowed)
