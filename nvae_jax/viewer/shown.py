"""What the page shows: pictures of a run as arrays of pixels.

Nothing is kept between two calls, so that several people can use a page at the same time: the
latents of the samples that somebody sees go out, and come in again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from nvae_jax.api import Run
from nvae_jax.errors import reading, require
from nvae_jax.evaluation.latents import chosen_groups, prior_noise
from nvae_jax.evaluation.pictures import draw_curves
from nvae_jax.workdir.pictures import enlarged, image_grid

COLUMNS = 4
SIDE = 512  # pixels that the shorter side of a sheet has at least
LARGEST_FILE = 20 * 2**20  # bytes of an upload
LARGEST_IMAGE = 2**26  # pixels of an upload: 64 million

Noise = list[np.ndarray]  # of samples, (N, h, w, Z) per group, top-down


class Shown:
    """Pictures of a run.

    Args:
      run: the run.
    """

    def __init__(self, run: Run):
        self.run = run

    @property
    def scales(self) -> int:
        """The number of scales."""
        return self.run.config.model.num_scales

    def sample(
        self, number: int, seed: int, temperatures: Sequence[float]
    ) -> tuple[np.ndarray, Noise]:
        """Samples from the prior, as `Run.sample` draws them.

        Args:
          number: of images.
          seed: of the draws.
          temperatures: one per scale, the coarsest first.

        Returns: a sheet (H, W, 3) uint8, and the samples' latents as noise.
        """
        run = self.run
        per_group = run.temperatures(temperatures)
        noise = prior_noise(run.config.model, int(number), per_group, int(seed))
        return self._decoded(noise), noise

    def resample(
        self, noise: Noise, scale: int, seed: int, temperatures: Sequence[float]
    ) -> tuple[np.ndarray, Noise]:
        """One scale of samples drawn anew, the others kept; as `sample`.

        Args:
          noise: what `sample` has returned.
          scale: the number of the scale, from the coarsest, 0.
          seed: of the new draws.
          temperatures: one per scale, the coarsest first.
        """
        model = self.run.config.model
        per_group = self.run.temperatures(temperatures)
        drawn = prior_noise(model, len(noise[0]), per_group, int(seed))
        moves = chosen_groups(model, (int(scale),), None)
        mixed = [new if moved else old for old, new, moved in zip(noise, drawn, moves, strict=True)]
        return self._decoded(mixed), mixed

    def by_depth(self, path: str | None, seed: int) -> np.ndarray:
        """An image, and what its coarsest 0, 1, … scales make of it; a sheet of one row."""
        x = self._read(path)
        numbers = tuple(range(self.scales + 1))
        rows = self.run.reconstruct(x, scales=numbers, seed=int(seed))
        images = np.concatenate([self.run.config.model.image.without_border(x), rows[0]])
        return _sheet(images, len(images))

    def between(self, first: str | None, last: str | None, steps: int) -> np.ndarray:
        """A path from one image to another; a sheet of one row."""
        a, b = self._read(first), self._read(last)
        return _sheet(self.run.interpolate(a, b, steps=int(steps))[0], int(steps))

    def curves(self) -> np.ndarray:
        """The curves of the run as it is now, which may be in training."""
        records = self.run.trained.workdir.records.read_metrics()
        return np.round(255 * draw_curves(records, None, self.run.config.data.name)).astype(
            np.uint8
        )

    def _read(self, path: str | None) -> np.ndarray:
        from PIL import Image

        require("the image", path, path is not None, "an image file")
        assert path is not None
        size = os.path.getsize(path)
        require("the bytes of the image", size, size <= LARGEST_FILE, f"at most {LARGEST_FILE:,}")
        name = os.path.basename(path)
        # Pillow raises all kinds of exceptions for broken files.
        with reading("the image", name, "an image file", Exception), Image.open(path) as image:
            pixels = image.width * image.height
        require("the pixels of the image", pixels, pixels <= LARGEST_IMAGE, f"{LARGEST_IMAGE:,}")
        return self.run.images(path)

    def _decoded(self, noise: Noise) -> np.ndarray:
        return _sheet(self.run.decode(noise, space="noise"), COLUMNS)


def _sheet(images: np.ndarray, columns: int) -> np.ndarray:
    return enlarged(image_grid(images, columns), SIDE)
