"""The mode `decode`: images of latents."""

from __future__ import annotations

import dataclasses

import numpy as np

from nvae_jax.api import Run
from nvae_jax.command_line import validate
from nvae_jax.evaluation.latents import Space, read_latents
from nvae_jax.evaluation.trained import TrainedModel
from nvae_jax.modes.results import save_images


@dataclasses.dataclass(frozen=True)
class DecodeOptions:
    """Options of `decode`.

    Attributes:
      latents: an .npz file, as encode writes it
      space: latents, or noise: the same relative to the groups above
      scales: numbers of scales to take from the file, from the coarsest, 0; all by default
      groups: numbers of groups to take from the file, from the top, 0; all by default
      temperature: of the prior's noise, which the rest is drawn from; one number, one per scale or
        one per group
      seed: seeds these draws
      columns: images per row of the grid
      batch_size: images at a time on each device
      name: the name of what is written below decode/
    """

    latents: str
    space: Space = "latents"
    scales: tuple[int, ...] | None = None
    groups: tuple[int, ...] | None = None
    temperature: tuple[float, ...] = (1.0,)
    seed: int = 0
    columns: int | None = None
    batch_size: int = 16
    name: str = "images"

    def __post_init__(self):
        validate(self, "batch_size", "columns")


def decode(model: TrainedModel, options: DecodeOptions) -> np.ndarray:
    """Decodes a file of latents to `decode/<name>.png` in the work directory.

    Args:
      model: the model.
      options: which latents, and what of them.

    Returns: decoder means (N, h, w, C) in [0, 1].

    Raises:
      ConfigError: the file is missing or broken, or its latents are another model's.
    """
    latents = read_latents(model.config, options.latents)
    images = Run(model).decode(
        latents,
        space=options.space,
        scales=options.scales,
        groups=options.groups,
        temperature=options.temperature,
        seed=options.seed,
        batch_size=options.batch_size,
    )
    save_images(model, f"decode/{options.name}", images, options.columns, f"{len(images):,} images")
    return images
