"""The mode `sample`: images drawn from the prior."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from typing import Literal

import numpy as np

from nvae_jax.api import Run
from nvae_jax.command_line import validate
from nvae_jax.errors import require
from nvae_jax.evaluation.sampling import Pixels
from nvae_jax.evaluation.trained import TrainedModel
from nvae_jax.memory import machine_memory
from nvae_jax.modes.results import save_arrays, save_images
from nvae_jax.workdir.pictures import image_file, to_levels


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """Options of `sample`.

    Attributes:
      num_images: how many images to draw
      temperature: multiplies the prior's sigma; one number, one per scale or one per group,
        top-down
      seed: seeds the draws; image i is the same whatever the number of images and devices
      pixels: mean of the decoder's distribution, or sample
      recalibrate: use batch-norm statistics of samples at this temperature
      output: grid (one PNG), files (one PNG per image) or npz (uint8)
      columns: images per row of the grid
      batch_size: images at a time on each device
      name: the name of what is written below sample/
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


def sample(model: TrainedModel, options: SampleOptions = SampleOptions()) -> str:
    """Draws images from a trained model and writes them below `sample/` in the work directory.

    Args:
      model: the model.
      options: how many images, how they are drawn, and the form in which they are written.

    Returns: the path of the file or folder that was written.

    Raises:
      ConfigError: there are as many temperatures as the model has neither scales nor groups, or
        more images than fit the memory.
      FloatingPointError: recalibrated statistics or pixels are not finite.
    """
    if options.output != "files":
        _check_memory(model, options.num_images)
    batches = Run(model).sample_batches(
        options.num_images,
        temperature=options.temperature,
        seed=options.seed,
        pixels=options.pixels,
        recalibrate=options.recalibrate,
        batch_size=options.batch_size,
    )
    name = f"sample/{options.name}"
    target = model.workdir.results / name
    if options.output == "files" and target.is_dir():
        wanted = {_file(i) for i in range(options.num_images)}
        others = [path.name for path in target.iterdir() if path.name not in wanted]
        allowed = f"a new name: {target} holds {len(others)} other file(s), such as {others[:1]}"
        require("name", options.name, not others, allowed)
    kept: list[np.ndarray] = []
    done, compiled = 0, time.monotonic()
    for first, images in batches:
        if first == 0:
            done, compiled = len(images), time.monotonic()
        if options.output == "files":
            for i, image in enumerate(images, first):
                model.workdir.write(f"{name}/{_file(i)}", image_file(image))
        else:
            kept.append(images if options.output == "grid" else to_levels(images))
    rate = (options.num_images - done) / max(time.monotonic() - compiled, 1e-9)
    speed = f", {rate:.3g} images/s after the first {done}" if rate else ""
    what = f"{options.num_images:,} samples{speed}"
    if options.output == "grid":
        return save_images(model, name, np.concatenate(kept), options.columns, what)
    if options.output == "npz":
        return save_arrays(model, name, options, {"images": np.concatenate(kept)}, what)
    model.workdir.log(f"{what}: {target}")
    return os.fspath(target)


def _check_memory(model: TrainedModel, number: int) -> None:
    """Checks that images that are written as one file, and that file, fit half of the memory."""
    most = machine_memory() / (4 * 4 * math.prod(model.config.image.inner_shape))
    allowed = f"1 to {int(most):,} here, or --output=files"
    require("num_images", number, number <= most, allowed)


def _file(index: int) -> str:
    return f"{index:06d}.png"
