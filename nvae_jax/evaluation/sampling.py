"""Images from a model: samples from the prior, and reconstructions."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from nvae_jax.evaluation.trained import (
    TrainedModel,
    group_temperatures,
    image_keys,
    open_run,
)
from nvae_jax.model.architecture import ModelConfig
from nvae_jax.model.distributions import image_distribution, without_border
from nvae_jax.model.inference import FoldedNVAE
from nvae_jax.model.nvae import NVAE
from nvae_jax.options import validate

Pixels = Literal["mean", "sample"]


def decoded_mean(config: ModelConfig, logits: Array) -> Array:
    """The mean image of the decoder's distribution, without the border: (B, h, w, C) in [0, 1]."""
    return without_border(config, image_distribution(config, logits).mean())


def make_sampler(
    config: ModelConfig, num_images: int
) -> Callable[[Any, Array, Array | float], Array]:
    """A compiled function `(variables, key, temperature) → images` from the prior.

    Images are decoder means, (num_images, h, w, C) in [0, 1]. The temperature multiplies the
    prior's sigma: one number, or one a group (groups,), top-down.
    """
    model = NVAE(config)

    def sample(variables: Any, key: Array, temperature: Array | float) -> Array:
        logits: Any = model.apply(
            variables, num_images, temperature, method="sample_prior", rngs={"sample": key}
        )
        return decoded_mean(config, logits)

    return jax.jit(sample)


def make_reconstructor(config: ModelConfig) -> Callable[[Any, Array, Array], Array]:
    """A compiled function `(variables, x, key) → images`: decoder means given posterior draws.

    x is (B, H, W, C) in [0, 1]; the images are (B, h, w, C), without the border.
    """
    model = NVAE(config)

    def reconstruct(variables: Any, x: Array, key: Array) -> Array:
        output: Any = model.apply(variables, x, train=False, rngs={"sample": key})
        return decoded_mean(config, output.logits)

    return jax.jit(reconstruct)


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """Options of `sample`.

    Attributes:
      num_images: how many
      temperature: multiplies the prior's sigma; one number, one a scale or one a group, top-down
      seed: of the draws; image i is the same whatever the number of images and devices
      pixels: mean of the decoder's distribution, or sample
      recalibrate: use batch-norm statistics of samples at this temperature
      output: grid (one PNG), files (a PNG an image) or npz (uint8)
      columns: of the grid
      batch_size: images at a time on each device
      name: of what is written below sample/
    """

    num_images: int = 64
    temperature: tuple[float, ...] = (1.0,)
    seed: int = 0
    pixels: Pixels = "mean"
    recalibrate: bool = False
    output: Literal["grid", "files", "npz"] = "grid"
    columns: int | None = None
    batch_size: int = 16
    name: str = "samples"

    def __post_init__(self):
        validate(self, "num_images", "batch_size", "columns")


def sample(
    path: str | os.PathLike[str],
    options: SampleOptions = SampleOptions(),
    mesh: Mesh | None = None,
) -> str:
    """Draws images from a trained model and writes them below `sample/` in the work directory.

    Args:
      path: the work directory.
      options: how many, how, and in which form.
      mesh: the devices; all there are, by default.

    Returns: the path of the file or folder that was written.

    Raises:
      FileNotFoundError: there is no such work directory or checkpoint.
      ValueError: as many temperatures as the model has neither scales nor groups.
      FloatingPointError: recalibrated statistics are not finite.
    """
    # Slow to import, and not needed by the compiled functions.
    from nvae_jax.evaluation.files import npz, png, to_levels
    from nvae_jax.evaluation.recalibration import recalibrated

    model = open_run(path, mesh)
    temperatures = group_temperatures(model.config, options.temperature)
    if options.recalibrate:
        model = recalibrated(model, temperatures)
    batches = sample_batches(
        model,
        options.num_images,
        temperatures,
        options.seed,
        options.batch_size,
        options.pixels,
    )
    kept, done, compiled = [], 0, time.monotonic()
    for first, images in batches:
        done = done or len(images)
        if first == 0:
            compiled = time.monotonic()
        if options.output == "files":
            for i, image in enumerate(images, first):
                model.workdir.write(f"sample/{options.name}/{i:06d}.png", png(image[None], 1, 0))
        else:
            kept.append(images if options.output == "grid" else to_levels(images))
    rate = (options.num_images - done) / max(time.monotonic() - compiled, 1e-9)
    speed = f", {rate:.3g} images/s after the first {done}" if rate else ""
    name = f"sample/{options.name}"
    if options.output == "files":
        target = model.workdir.path / name
    else:
        images = np.concatenate(kept)
        if options.output == "grid":
            target = model.workdir.write(f"{name}.png", png(images, options.columns))
        else:
            provenance = dataclasses.asdict(options) | {"step": model.step}
            content = npz(images=images, provenance=np.asarray(json.dumps(provenance)))
            target = model.workdir.write(f"{name}.npz", content)
    model.workdir.log(f"{options.num_images:,} samples{speed}: {target}")
    return str(target)


def sample_batches(
    model: TrainedModel,
    number: int,
    temperatures: np.ndarray,
    seed: int,
    batch_size: int,
    pixels: Pixels = "mean",
) -> Iterator[tuple[int, np.ndarray]]:
    """Draws images 0 to `number` - 1 of a seed from the prior, a batch at a time.

    One compiled function goes from the images' numbers to pixels, without a way back to the host.

    Args:
      model: to draw from.
      number: of images.
      temperatures: (groups,), top-down.
      seed: image i depends on it and on i alone.
      batch_size: images at a time on each device.
      pixels: the decoder's mean, or a sample.

    Yields: the number of the first image, and images (B, h, w, C) float32 in [0, 1].
    """

    def numbers(index: np.ndarray) -> np.ndarray:
        return index.astype(np.uint32)

    return model.in_batches(
        model.compile(make_draw(model.config, pixels)),
        number,
        batch_size,
        numbers,
        "images sampled",
        constants=(np.uint32(seed), temperatures),
    )


@functools.cache
def make_draw(config: ModelConfig, pixels: Pixels = "mean") -> Callable[..., Array]:
    """A function `(variables, index, seed, temperatures) → images` from the prior, for `jit`.

    The variables are those of a `FoldedNVAE`. See `sample_batches`.
    """
    network = FoldedNVAE(config)

    def draw(variables: Any, index: Array, seed: Array, temperatures: Array) -> Array:
        keys = image_keys(seed, index)
        logits: Any = network.apply(
            variables, len(index), temperatures, keys, method="sample_prior"
        )
        if pixels == "mean":
            return decoded_mean(config, logits)
        return sampled_pixels(config, logits, image_keys(seed, index, draw=1))

    return draw


def sampled_pixels(config: ModelConfig, logits: Array, keys: Array) -> Array:
    """Draws from the decoder's distribution, a key (B,) an image, without the border."""

    def one(logits: Array, key: Array) -> Array:
        return image_distribution(config, logits[None]).sample(key)[0]

    return without_border(config, jax.vmap(one)(logits, keys))
