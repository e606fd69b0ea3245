"""The mode `interpolate`: paths from image to image, through latents."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from nvae_jax.api import Run
from nvae_jax.command_line import validate
from nvae_jax.errors import require
from nvae_jax.evaluation.inputs import load_images, with_images
from nvae_jax.evaluation.latents import Space, prior_noise
from nvae_jax.evaluation.trained import TrainedModel
from nvae_jax.model import Latents
from nvae_jax.modes.results import save_rows
from nvae_jax.workdir.pictures import Animation, animation


@dataclasses.dataclass(frozen=True)
class InterpolateOptions:
    """Options of `interpolate`.

    Attributes:
      images: test:3, train:0-7 or image files, separated by commas; the paths lead from
        each to the next; the first 8 of the test split by default
      samples: in place of images, how many paths between samples
      space: noise, spherical in the prior's standard-normal draws; or latents, linear in posterior
        means
      steps: images per path, both ends included
      scales: numbers of scales to move, from the coarsest, 0; all by default
      groups: numbers of groups to move, from the top, 0; all by default
      posterior_temperature: multiplies the posterior's noise; 1 draws, 0 gives means
      temperature: of the samples
      seed: seeds the draws
      animation: gif, webp or apng
      batch_size: images at a time on each device
      name: the name of what is written below interpolate/
    """

    images: tuple[str, ...] | None = None
    samples: int | None = None
    space: Space = "noise"
    steps: int = 9
    scales: tuple[int, ...] | None = None
    groups: tuple[int, ...] | None = None
    posterior_temperature: float = 0.0
    temperature: float = 1.0
    seed: int = 0
    animation: Animation = "gif"
    batch_size: int = 16
    name: str = "interpolation"

    def __post_init__(self):
        validate(self, "samples", "steps", "batch_size")
        require("steps", self.steps, self.steps >= 2, "2 or more")
        spaces = self.samples is None or self.space == "noise"
        require("space", self.space, spaces, "noise, between samples")


def interpolate(
    model: TrainedModel, options: InterpolateOptions = InterpolateOptions()
) -> np.ndarray:
    """Writes paths between images as strips and as an animation: `interpolate/<name>.*`.

    Groups that do not move stay those of a path's first image.

    Args:
      model: the model.
      options: the ends of the paths, and what moves along them.

    Returns: (paths, steps, h, w, C) in [0, 1]; the ends are the reconstructions, or the samples.

    Raises:
      ConfigError: there are no such images or groups.
    """
    run = Run(model)
    if options.samples is None:
        options = with_images(model, options, 8)
        x = load_images(model, options.images or (), "images")
        require("images", options.images, len(x) >= 2, "two images or more")
        ends = run.encode(
            x,
            posterior_temperature=options.posterior_temperature,
            seed=options.seed,
            batch_size=options.batch_size,
        )
    else:
        temperatures = run.temperatures(options.temperature)
        noise = prior_noise(model.config, options.samples + 1, temperatures, options.seed)
        ends = Latents(values=[], noise=noise)
    images = run.interpolate(
        jax.tree.map(lambda z: z[:-1], ends),
        jax.tree.map(lambda z: z[1:], ends),
        steps=options.steps,
        space=options.space,
        scales=options.scales,
        groups=options.groups,
        batch_size=options.batch_size,
    )
    name = f"interpolate/{options.name}"
    suffix = {"apng": "png"}.get(options.animation, options.animation)
    moving_images = animation(images.swapaxes(0, 1), options.animation)
    target = model.workdir.write(f"{name}_animated.{suffix}", moving_images)
    save_rows(model, name, images, f"{len(images):,} path(s) of {options.steps} images: {target}")
    return images
