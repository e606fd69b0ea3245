"""By which number states of a run are compared, and how it is written."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, SupportsFloat

from nvae_jax.config.run import RunConfig
from nvae_jax.model.distributions import bits_per_dimension


@dataclasses.dataclass(frozen=True)
class Criterion:
    """The bound of the likelihood, or what stands in for it where there is none.

    Attributes:
      name: of the metric.
      title: for people.
      dimensions: of an image, as bits per dimension count them; None: the number is not in nats.
      lowest: what it cannot be below: 0 where pixels have probabilities or squared errors.
    """

    name: str = "nelbo"
    title: str = "NELBO"
    dimensions: int | None = 1
    lowest: float = -math.inf

    @classmethod
    def of(cls, run: RunConfig) -> Criterion:
        """The criterion of a run."""
        title = "NELBO" if run.has_bound else "reconstruction error"
        dimensions = run.model.image.num_dimensions if run.model.has_likelihood else None
        lowest = -math.inf if run.model.likelihood == "normal" else 0.0
        return cls(run.criterion, title, dimensions, lowest)

    @property
    def is_bound(self) -> bool:
        """Whether it is the bound."""
        return self.name == "nelbo"

    @property
    def unit(self) -> str:
        """Its unit, with a space in front."""
        return " nats" if self.dimensions else ""

    @property
    def label(self) -> str:
        """For the axis of a picture."""
        return f"{self.title}, nats per image" if self.dimensions else self.title

    def brief(self, value: SupportsFloat) -> str:
        """A value without its unit."""
        return f"{float(value):.1f}" if self.dimensions else f"{float(value):.4g}"

    def full(self, value: SupportsFloat) -> str:
        """A value, in both units where it is in nats."""
        number = float(value)
        if not self.dimensions:
            return f"{number:.5g}"
        bits = bits_per_dimension(number, self.dimensions)
        return f"{number:.2f} nats ({bits:.3f} bits/dim)"

    def describe(self, means: Mapping[str, Any]) -> str:
        """What measurements hold of the bound and its parts."""
        value = f"{self.title} {self.full(means[self.name])}"
        if self.is_bound:
            return f"{value} = {means['reconstruction']:.1f} + KL {means['kl']:.1f}"
        return f"{value}, KL {means['kl']:.1f}" if "kl" in means else value


NELBO = Criterion()
