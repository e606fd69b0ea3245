"""A trained model as an autoencoder: images into latents, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nvae_jax.api.arguments import check_counts, checked_seed, first_of, latent_arrays
from nvae_jax.errors import require
from nvae_jax.evaluation.inputs import pixels_of
from nvae_jax.evaluation.latents import (
    Space,
    chosen_groups,
    decode_latents,
    decode_tops,
    encode_images,
    top_groups,
)
from nvae_jax.evaluation.paths import decode_paths
from nvae_jax.evaluation.trained import TrainedModel, group_temperatures
from nvae_jax.model import Latents

Temperature = float | Sequence[float]


class Autoencoder:
    """The latents of a trained model.

    Args:
      trained: the model on its devices.
    """

    def __init__(self, trained: TrainedModel):
        self.trained = trained

    def encode(
        self,
        images: Any,
        *,
        posterior_temperature: float = 1.0,
        seed: int = 0,
        batch_size: int = 16,
    ) -> Latents:
        """The latents of images.

        Args:
          images: one image or a batch, of uint8 levels, or floats in [0, 1], of the model's size,
            with or without its border: (N, H, W, C), (H, W, C), for grey ones (H, W); one of
            Pillow's images of any size; or a list of images.
          posterior_temperature: multiplies the posterior's noise: 1 draws, 0 gives means.
          seed: of the draws; image i depends on the seed and on i alone.
          batch_size: images at a time on each device.

        Returns: `Latents` with `values`, the z of the paper, and `noise`, the same as
          standard-normal draws of the prior. Both are lists of one array (N, h, w, Z) per group,
          top-down; (h, w, Z) for one image that is not in a batch.

        Raises:
          ConfigError: these are no images of the model's size.

        >>> latents = run.encode(run.images("test:0-1"))
        >>> [z.shape for z in latents.values]
        [(2, 4, 4, 2), (2, 4, 4, 2), (2, 8, 8, 2), (2, 8, 8, 2)]
        """
        check_counts(batch_size=batch_size)
        x, alone = pixels_of(self.trained, images)
        return first_of(self._encode(x, posterior_temperature, seed, batch_size), alone)

    def _encode(self, x: np.ndarray, temperature: float, seed: int, batch_size: int) -> Latents:
        valid = 0 <= temperature < float("inf")
        require("posterior_temperature", temperature, valid, "0 or more")
        return encode_images(self.trained, x, temperature, checked_seed(seed), batch_size)

    def decode(
        self,
        latents: Latents | Sequence[np.ndarray],
        *,
        space: Space = "latents",
        scales: Sequence[int] | None = None,
        groups: Sequence[int] | None = None,
        temperature: Temperature = 1.0,
        seed: int = 0,
        batch_size: int = 16,
    ) -> np.ndarray:
        """Images of latents.

        Args:
          latents: as `encode` returns them, or a list of one array (N, h, w, Z) or (h, w, Z) per
            group, top-down, in the space that `space` says.
          space: what is decoded: `latents`, the values; or `noise`, which means the same relative
            to the groups above, whatever these are.
          scales: numbers of scales to take, from the coarsest, 0.
          groups: numbers of groups to take, from the top, 0. What is not taken is drawn from the
            prior; without `scales` and `groups`, everything is taken.
          temperature: of the prior's noise, as for `sample`.
          seed: of these draws.
          batch_size: images at a time on each device.

        Returns: decoder means (N, h, w, C) float32 in [0, 1]; (h, w, C) for one image.

        Raises:
          ConfigError: these are no latents of the model, or there is no such scale or group.

        >>> images = run.decode(run.encode(run.images("test:0-1")))
        >>> images.shape
        (2, 28, 28, 1)
        """
        check_counts(batch_size=batch_size)
        arrays, alone = latent_arrays(self.trained.config, latents, space)
        chosen = chosen_groups(self.trained.config, scales, groups)
        images = decode_latents(
            self.trained,
            arrays,
            space,
            given=np.tile(chosen, (len(arrays[0]), 1)),
            temperatures=self.temperatures(temperature),
            seed=checked_seed(seed),
            batch_size=batch_size,
        )
        return first_of(images, alone)

    def reconstruct(
        self,
        images: Any,
        *,
        scales: int | Sequence[int] | None = None,
        groups: int | Sequence[int] | None = None,
        posterior_temperature: float = 1.0,
        temperature: Temperature = 1.0,
        seed: int = 0,
        batch_size: int = 16,
    ) -> np.ndarray:
        """Images from their own latents, or from the coarsest of them.

        Args:
          images: as for `encode`.
          scales: how many scales to take from the image, from the coarsest; the rest is drawn from
            the prior. Several numbers give a further axis. None: all, or as `groups` says.
          groups: the same in groups, from the top.
          posterior_temperature: multiplies the posterior's noise: 1 draws, 0 gives means.
          temperature: of the prior's noise, as for `sample`.
          seed: of all draws, the same for all numbers of scales.
          batch_size: images at a time on each device.

        Returns: decoder means (N, h, w, C) float32 in [0, 1], or (N, numbers, h, w, C); without N
          for one image.

        Raises:
          ConfigError: these are no images of the model's size, or it has fewer scales or groups.

        >>> run.reconstruct(run.images("test:0-1"), scales=1).shape
        (2, 28, 28, 1)
        >>> run.reconstruct(run.images("test:0-1"), groups=(0, 4)).shape
        (2, 2, 28, 28, 1)
        """
        check_counts(batch_size=batch_size)
        require("groups", groups, scales is None or groups is None, "scales or groups, not both")
        model = self.trained.config
        unit, numbers = ("groups", groups) if scales is None else ("scales", scales)
        numbers = model.total_groups if numbers is None else numbers
        several = not isinstance(numbers, int | np.integer)
        kept = top_groups(model, numbers if several else (numbers,), unit, unit)  # type: ignore[arg-type]
        x, alone = pixels_of(self.trained, images)
        latents = self._encode(x, posterior_temperature, seed, batch_size)
        temperatures = self.temperatures(temperature)
        decoded = decode_tops(self.trained, latents, kept, temperatures, seed, batch_size)
        return first_of(decoded if several else decoded[:, 0], alone)

    def interpolate(
        self,
        a: Any,
        b: Any,
        *,
        steps: int = 9,
        space: Space = "noise",
        scales: Sequence[int] | None = None,
        groups: Sequence[int] | None = None,
        posterior_temperature: float = 0.0,
        seed: int = 0,
        batch_size: int = 16,
    ) -> np.ndarray:
        """Paths from image to image, through latents.

        Args:
          a: where the paths start: one image or a batch, as for `encode`; or `Latents`.
          b: where they end, as many as `a`, and of the same kind.
          steps: images per path, both ends included.
          space: `noise`, spherical in the prior's standard-normal draws (White, 2016); or
            `latents`, straight.
          scales: numbers of scales to move, from the coarsest, 0.
          groups: numbers of groups to move, from the top, 0. Those that do not move stay those of
            `a`; without `scales` and `groups`, all move.
          posterior_temperature: multiplies the posterior's noise: 1 draws, 0 gives means.
          seed: of the draws.
          batch_size: images at a time on each device.

        Returns: (N, steps, h, w, C) float32 in [0, 1]; the ends are the reconstructions. (steps, h,
          w, C) for one path.

        Raises:
          ConfigError: the ends are not images or latents of the model, or of different numbers; or
            there is no such scale or group.

        >>> a, b = run.images("test:0-1")
        >>> run.interpolate(a, b, steps=4).shape
        (4, 28, 28, 1)
        """
        check_counts(batch_size=batch_size)
        require("steps", steps, steps >= 2, "2 or more")
        moving = chosen_groups(self.trained.config, scales, groups)
        if isinstance(a, Latents):
            (first, alone), (last, _) = (
                latent_arrays(self.trained.config, end, space) for end in (a, b)
            )
        else:
            (x, alone), (y, _) = pixels_of(self.trained, a, "a"), pixels_of(self.trained, b, "b")
            both = np.concatenate([x, y])
            latents = self._encode(both, posterior_temperature, seed, batch_size)
            arrays, _ = latent_arrays(self.trained.config, latents, space)
            first, last = [z[: len(x)] for z in arrays], [z[len(x) :] for z in arrays]
        numbers = len(first[0]), len(last[0])
        require("the numbers of ends", numbers, numbers[0] == numbers[1], "the same number of both")
        images = decode_paths(self.trained, first, last, moving, steps, space, batch_size)
        return first_of(images, alone)

    def temperatures(self, temperature: Temperature) -> np.ndarray:
        """Temperatures (groups,), top-down, from one number, one per scale or one per group.

        Raises:
          ConfigError: there is another number of values, or a negative one.

        >>> run.temperatures((0.7, 1)).tolist()
        [0.699999988079071, 0.699999988079071, 1.0, 1.0]
        """
        values = np.ravel(np.asarray(temperature, float))
        return group_temperatures(self.trained.config, tuple(map(float, values)))
