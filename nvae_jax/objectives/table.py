"""The objectives by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nvae_jax.errors import require
from nvae_jax.fields import from_mapping
from nvae_jax.objectives.adversarial import WaeGan
from nvae_jax.objectives.base import Objective
from nvae_jax.objectives.decomposed import Decomposed
from nvae_jax.objectives.elbo import Elbo
from nvae_jax.objectives.introspective import Intro
from nvae_jax.objectives.mmd import Mmd

ELBO = Elbo()  # what is minimised unless something else is said

OBJECTIVES: dict[str, type[Objective]] = {
    objective.name: objective for objective in (Elbo, Decomposed, Mmd, WaeGan, Intro)
}


def objective_config(settings: Mapping[str, Any]) -> Objective:
    """The objective that a section `objective` describes.

    Args:
      settings: its fields, and `name`, a key of `OBJECTIVES`; without it, `elbo` is meant.

    Raises:
      ConfigError: a field is unknown, missing, of the wrong type or impossible.
    """
    fields = dict(settings)
    name = fields.pop("name", ELBO.name)
    known = isinstance(name, str) and name in OBJECTIVES
    require("objective.name", name, known, ", ".join(OBJECTIVES))
    return from_mapping(OBJECTIVES[name], fields, "objective")
