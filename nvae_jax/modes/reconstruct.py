"""The mode `reconstruct`: images beside their reconstructions."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from nvae_jax.api import Run
from nvae_jax.command_line import validate
from nvae_jax.evaluation.inputs import load_images, with_images
from nvae_jax.evaluation.latents import inputs_of, top_groups
from nvae_jax.evaluation.trained import TrainedModel
from nvae_jax.modes.results import save_rows


@dataclasses.dataclass(frozen=True)
class ReconstructOptions:
    """Options of `reconstruct`.

    Attributes:
      images: test:3, train:0-7 or image files, separated by commas; the first 8 of the test
        split by default
      keep: how many groups or scales, from the top, to take from the image, one column each;
        the rest is drawn from the prior
      unit: what keep counts, scales or groups
      posterior_temperature: multiplies the posterior's noise; 1 draws, 0 gives means
      temperature: of the prior's noise; one number, one per scale or one per group, top-down
      seed: seeds the draws
      batch_size: images at a time on each device
      name: the name of what is written below reconstruct/
    """

    images: tuple[str, ...] | None = None
    keep: tuple[int, ...] | None = None
    unit: Literal["scales", "groups"] = "scales"
    posterior_temperature: float = 1.0
    temperature: tuple[float, ...] = (1.0,)
    seed: int = 0
    batch_size: int = 16
    name: str = "reconstructions"

    def __post_init__(self):
        validate(self, "batch_size")


def reconstruct(
    model: TrainedModel, options: ReconstructOptions = ReconstructOptions()
) -> np.ndarray:
    """Shows what the top k groups or scales hold of an image: `reconstruct/<name>.png`.

    One row per image: the image, then for every k a decoding of its top k groups, the rest drawn
    from the prior, with the same draws in all columns.

    Args:
      model: the model.
      options: which images, and which k.

    Returns: (N, 1 + number of k, h, w, C) in [0, 1].

    Raises:
      ConfigError: there are no such images or groups.
    """
    options = with_images(model, options, 8)
    x = load_images(model, options.images or (), "images")
    number = model.config.num_scales if options.unit == "scales" else model.config.total_groups
    keep = tuple(range(number + 1)) if options.keep is None else options.keep
    top_groups(model.config, keep, options.unit)  # or the refusal would name another field
    decoded = Run(model).reconstruct(
        x,
        **{options.unit: keep},
        posterior_temperature=options.posterior_temperature,
        temperature=options.temperature,
        seed=options.seed,
        batch_size=options.batch_size,
    )
    rows = np.concatenate([inputs_of(model.config, x)[:, None], decoded], axis=1)
    what = f"{len(x):,} images, each beside {len(keep)} reconstructions"
    save_rows(model, f"reconstruct/{options.name}", rows, what)
    return rows
