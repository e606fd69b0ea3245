"""A trained model in Python."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from nvae_jax.api.arguments import check_counts, checked_seed, first_of
from nvae_jax.api.autoencoder import Autoencoder, Temperature
from nvae_jax.config.run import RunConfig
from nvae_jax.evaluation.inputs import load_images, pixels_of
from nvae_jax.evaluation.likelihood import bounds_of_images
from nvae_jax.evaluation.recalibration import recalibrated
from nvae_jax.evaluation.sampling import Pixels, sample_batches
from nvae_jax.model import VAE
from nvae_jax.model.families import make_network


class Run(Autoencoder):
    """A trained model.

    Args:
      trained: the model on its devices.

    Attributes:
      trained: the model on its devices, as modes use it.
    """

    @property
    def config(self) -> RunConfig:
        """The run's configuration: its sections `model`, `data`, `loading` and `training`."""
        return self.trained.run

    @property
    def model(self) -> VAE:
        """The network, a Flax module, whose `apply` accepts `variables`."""
        return make_network(self.config.model)

    @property
    def variables(self) -> dict[str, Any]:
        """`params` (averaged ones where the run keeps them) and `batch_stats`, on the devices."""
        return self.trained.variables

    @property
    def step(self) -> int:
        """The number of updates that the model was trained with."""
        return self.trained.step

    def __repr__(self) -> str:
        model = self.config.model
        return (
            f"Run({self.trained.workdir.path.name!r}, step {self.step:,}: {model.total_groups} "
            f"groups of latents over {model.num_scales} scales, images {model.image.inner_shape})"
        )

    def images(self, *names: str) -> np.ndarray:
        """Images by name, as the model sees them: of the run's data, or of files.

        Args:
          *names: `test:3`, `train:0-7` (both ends included), or paths of image files.

        Returns: (N, H, W, C) float32 in [0, 1], with the model's border. Those of binary models are
          binarised, in the same way at every call.

        Raises:
          ConfigError: there are no such images.

        >>> run.images("test:0-7").shape
        (8, 32, 32, 1)
        """
        return load_images(self.trained, names, "images")

    def sample(
        self,
        number: int = 16,
        *,
        temperature: Temperature = 1.0,
        seed: int = 0,
        pixels: Pixels = "mean",
        recalibrate: bool = False,
        batch_size: int = 16,
    ) -> np.ndarray:
        """Images from the prior.

        Args:
          number: of images.
          temperature: multiplies the prior's sigma; one number, one per scale or one per group,
            top-down.
          seed: of the draws; image i depends on the seed and on i alone.
          pixels: the `mean` of the decoder's distribution, or a `sample` of it.
          recalibrate: whether to use batch-norm statistics of samples at this temperature (NVAE,
            §4.2), which are computed once and kept in the run's folder.
          batch_size: images at a time on each device.

        Returns: (N, h, w, C) float32 in [0, 1].

        Raises:
          ConfigError: the temperatures are none, or as many as there are neither scales nor groups.
          FloatingPointError: recalibrated statistics are not finite.

        >>> run.sample(2, temperature=0.8, seed=1).shape
        (2, 28, 28, 1)
        """
        batches = self.sample_batches(
            number,
            temperature=temperature,
            seed=seed,
            pixels=pixels,
            recalibrate=recalibrate,
            batch_size=batch_size,
        )
        return np.concatenate([images for _, images in batches])

    def sample_batches(
        self,
        number: int,
        *,
        temperature: Temperature = 1.0,
        seed: int = 0,
        pixels: Pixels = "mean",
        recalibrate: bool = False,
        batch_size: int = 16,
    ) -> Iterator[tuple[int, np.ndarray]]:
        """As `sample`, a batch at a time, for more images than fit the memory.

        Yields: the number of a batch's first image, and its images (B, h, w, C).
        """
        check_counts(number=number, batch_size=batch_size)
        temperatures = self.temperatures(temperature)
        model = recalibrated(self.trained, temperatures) if recalibrate else self.trained
        return sample_batches(model, number, temperatures, checked_seed(seed), batch_size, pixels)

    def log_likelihood(
        self,
        images: Any,
        *,
        draws: int = 100,
        seed: int = 0,
        batch_size: int = 16,
        draws_at_once: int = 1,
    ) -> Any:
        """Lower bounds of log p(x), importance-weighted (Burda et al., 2016).

        Args:
          images: as for `encode`.
          draws: importance weights per image; the bound tightens with them. One gives the ELBO.
          seed: of the draws; image i depends on the seed and on i alone.
          batch_size: images at a time on each device.
          draws_at_once: draws per image in one pass; faster for few images, but requires more
            memory.

        Returns: (N,) float32, in nats per image; a number for one image. Divided by -log(2) and by
          the model's `image.num_dimensions`, they are bits per dimension.

        Raises:
          ConfigError: these are no images of the model's size.

        >>> run.log_likelihood(run.images("test:0-1"), draws=2).shape
        (2,)
        """
        check_counts(draws=draws, batch_size=batch_size, draws_at_once=draws_at_once)
        x, alone = pixels_of(self.trained, images)
        bounds = bounds_of_images(
            self.trained, x, draws, draws_at_once, checked_seed(seed), batch_size
        )
        return first_of(bounds, alone)
