"""The mode `interpolate`: paths from image to image, through latents."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from nvae_jax.command_line import validate
from nvae_jax.errors import require
from nvae_jax.evaluation.inputs import load_images
from nvae_jax.evaluation.latents import Space, chosen_groups, decode_latents, encode_images
from nvae_jax.evaluation.trained import TrainedModel, image_keys, image_noise
from nvae_jax.modes.results import save_rows
from nvae_jax.workdir.pictures import Animation, animation


@dataclasses.dataclass(frozen=True)
class InterpolateOptions:
    """Options of `interpolate`.

    Attributes:
      images: test:3, train:0-7 or image files, separated by commas; the paths lead from
        each to the next
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

    images: tuple[str, ...] = ("test:0-7",)
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
    moving = chosen_groups(model.config, options.scales, options.groups)
    ends: Sequence[np.ndarray]
    if options.samples is None:
        x = load_images(model, options.images, "images")
        require("images", options.images, len(x) >= 2, "two images or more")
        latents = encode_images(
            model, x, options.posterior_temperature, options.seed, options.batch_size
        )
        ends = latents.noise if options.space == "noise" else latents.values
    else:
        keys = image_keys(options.seed, np.arange(options.samples + 1, dtype=np.uint32))
        ends = [np.asarray(z) for z in image_noise(model.config, keys, options.temperature)]
    path = spherical if options.space == "noise" else linear
    paths = [
        path(z[:-1], z[1:] if moves else z[:-1], options.steps)
        for z, moves in zip(ends, moving, strict=True)
    ]
    images = decode_latents(
        model,
        [z.reshape(-1, *z.shape[2:]) for z in paths],
        options.space,
        batch_size=options.batch_size,
    )
    images = images.reshape(-1, options.steps, *images.shape[1:])
    name = f"interpolate/{options.name}"
    suffix = {"apng": "png"}.get(options.animation, options.animation)
    moving_images = animation(images.swapaxes(0, 1), options.animation)
    target = model.workdir.write(f"{name}_animated.{suffix}", moving_images)
    save_rows(model, name, images, f"{len(images):,} paths of {options.steps} images: {target}")
    return images


def spherical(a: np.ndarray, b: np.ndarray, steps: int) -> np.ndarray:
    """Spherical interpolation of standard-normal draws (White, 2016).

    Straight paths lead through vectors that are too short to be typical draws; this one turns from
    one direction into the other. Each row is a vector of its own.

    Args:
      a: (N, …), where the paths start.
      b: (N, …), where they end.
      steps: images per path, both ends included, at least 2.

    Returns: (N, steps, …), the ends exactly as given.
    """
    t = np.linspace(0, 1, steps)
    flat_a, flat_b = (x.reshape(len(x), 1, -1).astype(np.float64) for x in (a, b))
    lengths = np.linalg.norm(flat_a, axis=-1) * np.linalg.norm(flat_b, axis=-1)
    cosine = (flat_a * flat_b).sum(-1) / np.maximum(lengths, 1e-30)
    angle = np.arccos(np.clip(cosine, -1, 1))  # (N, 1)
    sine = np.sin(angle)
    straight = sine < 1e-6
    safe = np.where(straight, 1.0, sine)
    weight_a = np.where(straight, 1 - t, np.sin((1 - t) * angle) / safe)
    weight_b = np.where(straight, t, np.sin(t * angle) / safe)
    way = weight_a[..., None] * flat_a + weight_b[..., None] * flat_b
    return way.reshape(len(a), steps, *a.shape[1:]).astype(a.dtype)


def linear(a: np.ndarray, b: np.ndarray, steps: int) -> np.ndarray:
    """Straight interpolation: as `spherical`."""
    t = np.linspace(0, 1, steps, dtype=a.dtype).reshape(1, steps, *[1] * (a.ndim - 1))
    return (1 - t) * a[:, None] + t * b[:, None]
