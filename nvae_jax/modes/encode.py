"""The mode `encode`: the latents of images."""

from __future__ import annotations

import dataclasses

from nvae_jax.api import Run
from nvae_jax.command_line import validate
from nvae_jax.evaluation.inputs import load_images, with_images
from nvae_jax.evaluation.trained import TrainedModel
from nvae_jax.modes.results import save_arrays


@dataclasses.dataclass(frozen=True)
class EncodeOptions:
    """Options of `encode`.

    Attributes:
      images: test:3, train:0-7 or image files, separated by commas; the first 16 of the test
        split by default
      posterior_temperature: multiplies the posterior's noise; 1 draws, 0 gives means
      seed: seeds the draws
      batch_size: images at a time on each device
      name: the name of what is written below encode/
    """

    images: tuple[str, ...] | None = None
    posterior_temperature: float = 1.0
    seed: int = 0
    batch_size: int = 16
    name: str = "latents"

    def __post_init__(self):
        validate(self, "batch_size")


def encode(model: TrainedModel, options: EncodeOptions = EncodeOptions()) -> str:
    """Writes the latents of images to `encode/<name>.npz` in the work directory.

    The file has `values_00`, `values_01`, … and `noise_00`, …, one (N, h, w, Z) each per group,
    top-down: the latents that `decode` reads, and the same as standard-normal draws of the prior.
    It also has `provenance`, a JSON object.

    Args:
      model: the model.
      options: which images, and means or draws.

    Returns: the path of the file.

    Raises:
      ConfigError: there are no such images.
    """
    options = with_images(model, options, 16)
    x = load_images(model, options.images or (), "images")
    latents = Run(model).encode(
        x,
        posterior_temperature=options.posterior_temperature,
        seed=options.seed,
        batch_size=options.batch_size,
    )
    arrays = {
        f"{name}_{g:02d}": group
        for name in ("values", "noise")
        for g, group in enumerate(getattr(latents, name))
    }
    name = f"encode/{options.name}"
    return save_arrays(model, name, options, arrays, f"latents of {len(x):,} images")
