"""Handwritten characters, as the paper scores them: MNIST, OMNIGLOT and stacked MNIST."""

import dataclasses

import numpy as np

from nvae_jax.data.images import ImageReader
from nvae_jax.data.sources.base import Recipe, Source, read_many
from nvae_jax.data.sources.prepared import Prepared
from nvae_jax.errors import require
from nvae_jax.image_spec import ImageSpec

_DIGITS = ImageSpec(32, 32, 1, border=2, binarize=True)  # 28x28, padded


@dataclasses.dataclass(frozen=True)
class Mnist(Prepared):
    """MNIST: 60,000 digits to train and 10,000 to test, padded to 32x32x1, binarised."""

    name = "mnist"
    stored = Recipe(
        builder="mnist",
        splits=("train", "test"),
        files=tuple(
            f"{split}-{kind}-ubyte.gz"
            for split in ("train", "t10k")
            for kind in ("images-idx3", "labels-idx1")
        ),
        images=70_000,
        image_bytes=28 * 28,
    )
    shown = _DIGITS
    reader = ImageReader(channels=1, border=_DIGITS.border)
    flip = False


@dataclasses.dataclass(frozen=True)
class Omniglot(Prepared):
    """OMNIGLOT at 28x28 (Burda et al., 2015): 24,345 characters to train and 8,070 to test.

    Padded to 32x32x1, binarised.
    """

    name = "omniglot"
    stored = Recipe(
        builder="omniglot28",
        splits=("train", "test"),
        files=("https://github.com/yburda/iwae/raw/master/datasets/OMNIGLOT/chardata.mat",),
        images=32_415,
        image_bytes=28 * 28,
    )
    shown = _DIGITS
    reader = Mnist.reader
    flip = False


@dataclasses.dataclass(frozen=True)
class StackedMnist(Prepared):
    """MNIST digits stacked as colours, 32x32x3: 120,000 to train and 20,000 to test, not binarised.

    Each channel goes through all digits twice, in two permutations of its own that are drawn once.
    """

    name = "stacked_mnist"
    stored = Mnist.stored
    shown = ImageSpec(32, 32, 3, border=_DIGITS.border)
    reader = Mnist.reader
    flip = False

    seed: int = 0  # of the permutations

    def __post_init__(self):
        require("data.seed", self.seed, self.seed >= 0, "0 or more")

    def _sources(self) -> list[Source]:
        train, test = super()._sources()
        return [Stacked(train, self.seed), Stacked(test, self.seed + 1)]


class Stacked:
    """Colour images whose channels are three grey images each, 2 N of them."""

    def __init__(self, source: Source, seed: int):
        """Draws which three: every grey image is used twice in each channel."""
        self._source = source
        number = len(source)
        rng = np.random.default_rng(seed)
        order = [np.concatenate([rng.permutation(number) for _ in range(2)]) for _ in range(3)]
        self.indices = np.stack(order, axis=1)  # (2 N, 3)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int, /) -> np.ndarray:
        return self.many([index])[0]

    def many(self, indices: list[int], /) -> np.ndarray:
        """The images at `indices`."""
        grey = np.stack(read_many(self._source, self.indices[indices].T.ravel()))
        return np.concatenate(np.split(grey, 3), axis=-1)
