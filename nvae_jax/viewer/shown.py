"""What the page shows: pictures of a run as arrays of pixels.

Nothing is kept between two calls, so that several people can use a page at the same time.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence

import numpy as np

from nvae_jax.api import Run
from nvae_jax.errors import reading, require
from nvae_jax.evaluation.latents import chosen_groups, prior_noise
from nvae_jax.evaluation.pictures import draw_curves
from nvae_jax.workdir.pictures import enlarged, image_grid, to_levels

COLUMNS = 4
MOST_IMAGES = 64  # samples at a time
MOST_STEPS = 16  # images of a path
SIDE = 512  # pixels that the shorter side of a sheet has at least
LARGEST_FILE = 20 * 2**20  # bytes of an upload
LARGEST_IMAGE = 2**26  # pixels of an upload: 64 million


class Shown:
    """Pictures of a run.

    Args:
      run: the run.
    """

    def __init__(self, run: Run):
        self.run = run

    @property
    def scales(self) -> list[tuple[int, int]]:
        """(height, width) of the latents of each scale, the coarsest first."""
        model = self.run.config.model
        return list(dict.fromkeys(shape[:2] for shape in model.latent_shapes))

    def samples(
        self, number: int, seeds: Sequence[int], temperatures: Sequence[float]
    ) -> np.ndarray:
        """Samples from the prior; with one seed for all scales, those that `Run.sample` draws.

        Args:
          number: of samples.
          seeds: of the draws, one per scale, the coarsest first.
          temperatures: one per scale.

        Returns: a sheet (H, W, 3) uint8.
        """
        require("images", number, 1 <= number <= MOST_IMAGES, f"1 to {MOST_IMAGES}")
        model, per_group = self.run.config.model, self.run.temperatures(temperatures)
        noise: list[np.ndarray] = []
        for scale, seed in enumerate(seeds):
            drawn = prior_noise(model, int(number), per_group, int(seed))
            noise += itertools.compress(drawn, chosen_groups(model, (scale,), None))
        return _sheet(self.run.decode(noise, space="noise"), COLUMNS)

    def by_depth(self, path: str | None, seed: int) -> np.ndarray:
        """An image, and what its coarsest 0, 1, … scales make of it; a sheet of one row."""
        x = self._read(path)
        numbers = tuple(range(len(self.scales) + 1))
        rows = self.run.reconstruct(x, scales=numbers, seed=int(seed))
        images = np.concatenate([self.run.config.model.image.without_border(x), rows[0]])
        return _sheet(images, len(images))

    def between(self, first: str | None, last: str | None, steps: int) -> np.ndarray:
        """A path from one image to another; a sheet of one row."""
        require("images", steps, 2 <= steps <= MOST_STEPS, f"2 to {MOST_STEPS}")
        a, b = self._read(first), self._read(last)
        return _sheet(self.run.interpolate(a, b, steps=int(steps))[0], int(steps))

    def curves(self) -> np.ndarray:
        """The curves of the run as it is now, which may be in training."""
        records = self.run.trained.workdir.records.read_metrics()
        return to_levels(draw_curves(records, None, self.run.config.data.name))

    def _read(self, path: str | None) -> np.ndarray:
        from PIL import Image

        require("the image", path, path is not None, "an image file")
        assert path is not None
        size = os.path.getsize(path)
        require("the bytes of the image", size, size <= LARGEST_FILE, f"at most {LARGEST_FILE:,}")
        name = os.path.basename(path)
        # Pillow raises all kinds of exceptions for broken files.
        with reading("the image", name, "an image file", Exception), Image.open(path) as image:
            pixels, most = image.width * image.height, LARGEST_IMAGE
            require("the pixels of the image", pixels, pixels <= most, f"at most {most:,}")
            image.load()
        return self.run.images(path)


def _sheet(images: np.ndarray, columns: int) -> np.ndarray:
    return enlarged(image_grid(images, columns), SIDE)
