"""Which fields a run may be continued with other values of.

Fields of computation and output (`ADJUSTABLE`) are free. Those that give parameters their shape, or
say what an image is, are fixed. All others change what is learned, and require consent.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from nvae_jax.config.run import RunConfig
from nvae_jax.errors import ConfigError
from nvae_jax.fields import names_of
from nvae_jax.model import VAEConfig, variable_shapes
from nvae_jax.model.families import model_config

ACCEPT = "--accept_changes"

# These change how a run is computed, where its images are and what is written, not what is learned.
ADJUSTABLE = (
    "data.data_dir",
    "data.lmdb",
    "data.path",
    "loading.num_workers",
    "loading.prefetch",
    "model.remat",
    "model.unroll",
    "training.parameter_shards",
    "training.log_interval",
    "training.eval_interval",
    "training.picture_interval",
    "training.checkpoint_interval",
    "training.keep_checkpoints",
    "training.keep_best",
    "training.keep_every",
    "training.max_skipped",
    "training.max_rollbacks",
    "training.eval_batch_size",
    "training.eval_statistics",
    "training.recalibration_batches",
    "training.drift_batches",
)


@dataclasses.dataclass(frozen=True)
class Change:
    """A field with another value than before; `name` is dotted."""

    name: str
    saved: Any
    given: Any

    def __str__(self) -> str:
        return f"config.{self.name} is {self.given!r}, saved: {self.saved!r}"


def changes(saved: RunConfig, given: RunConfig) -> list[Change]:
    """The fields that differ, but for those of `ADJUSTABLE`; a field that one lacks is None."""
    before, after = (_as_json(run.to_dict()) for run in (saved, given))
    return [
        Change(f"{section}.{name}", fields.get(name), after[section].get(name))
        for section, fields in before.items()
        for name in fields | after[section]
        if f"{section}.{name}" not in ADJUSTABLE and fields.get(name) != after[section].get(name)
    ]


def check_changes(
    saved: RunConfig, given: RunConfig, accept: bool, where: str = "the run"
) -> list[Change]:
    """The fields whose values change when a run that has checkpoints goes on.

    Args:
      saved: the run as it was.
      given: the run with the settings that it is to go on with.
      accept: whether fields may change that change what is learned.
      where: the run, for messages.

    Raises:
      ConfigError: a field that is fixed differs, or another one without consent.
    """
    found = changes(saved, given)
    if fixed := _fixed(saved, given, found):
        raise ConfigError(
            f"{where} has other settings: {'; '.join(fixed)}; allowed: the saved values, or "
            "another --workdir for a new run"
        )
    consent(list(map(str, found)), accept, where)
    return found


def consent(found: Sequence[str], accept: bool, where: str) -> None:
    """Refuses changes of a run, unless they are accepted.

    Raises:
      ConfigError: there are any, and `accept` is not given; the message lists them.
    """
    if found and not accept:
        raise ConfigError(
            f"{where} has other settings: {'; '.join(found)}; allowed: the saved values, another "
            f"--workdir for a new run, or {ACCEPT} to go on with these changes"
        )


def _fixed(saved: RunConfig, given: RunConfig, found: Sequence[Change]) -> list[str]:
    """The changes that a trained model does not admit, each with its reason."""
    image = "which is what an image is to the model"
    shape = "which gives parameters their shape"
    of_model = [change for change in found if change.name.startswith("model.")]
    of_model = [change for change in of_model if change.name == "model.name"] or of_model
    fixed: list[tuple[Change, str]] = []
    if saved.model.image != given.model.image:
        blamed = [change for change in found if _changes_image(saved, given, change)]
        fixed += [(change, image) for change in blamed or found]
    shapes = variable_shapes(saved.model) if of_model else {}
    if of_model and shapes != variable_shapes(given.model):
        named = [change for change, _ in fixed]
        blamed = [c for c in of_model if c not in named and _reshapes(saved.model, shapes, c)]
        fixed += [(change, shape) for change in blamed or ([] if fixed else of_model)]
    state = "which gives the optimiser its state"
    fixed += [(change, state) for change in _of_state(saved, given, found)]
    return [f"{change}, {reason}" for change, reason in fixed]


def _of_state(saved: RunConfig, given: RunConfig, found: Sequence[Change]) -> list[Change]:
    """The changes that give the optimiser another state."""
    blamed = []
    if saved.training.optimizer != given.training.optimizer:
        blamed.append("training.optimizer")
    if (saved.training.regularization > 0) != (given.training.regularization > 0):
        blamed.append("training.regularization")
    if saved.objective.parts != given.objective.parts:
        renamed = saved.objective.name != given.objective.name
        names = ("name",) if renamed else names_of(type(given.objective))
        blamed += [f"objective.{name}" for name in names]
    return [change for change in found if change.name in blamed]


def _changes_image(saved: RunConfig, given: RunConfig, change: Change) -> bool:
    """Whether a change alone makes another image of it."""
    section, _, name = change.name.partition(".")
    before, after = getattr(saved, section), getattr(given, section)
    if section not in ("model", "data") or not hasattr(before, name) or not hasattr(after, name):
        return change.name == "data.name"
    try:
        alone = dataclasses.replace(before, **{name: getattr(after, name)})
        return alone.image != before.image
    except (ConfigError, TypeError):  # the data's name is no field of its class
        return change.name == "data.name"


def _reshapes(model: VAEConfig, shapes: Any, change: Change) -> bool:
    """Whether a change alone gives parameters other shapes, or is impossible alone."""
    field = change.name.partition(".")[2]
    try:
        settings = {"name": model.name} | dataclasses.asdict(model) | {field: change.given}
        return variable_shapes(model_config(settings)) != shapes
    except ConfigError:
        return True


def _as_json(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Settings as they come back from a file."""
    return json.loads(json.dumps(settings))
