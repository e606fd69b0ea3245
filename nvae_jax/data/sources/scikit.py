"""Real images that come with scikit-learn, so that every machine has them."""

import dataclasses
from typing import ClassVar

import numpy as np

from nvae_jax.data.sources.base import DataConfig, Dataset, positive_sides
from nvae_jax.errors import require
from nvae_jax.image_spec import ImageSpec

_PHOTO_SIZE = (427, 640)
_BOUNDARY = 448  # column at which the photographs' test parts begin


@dataclasses.dataclass(frozen=True)
class Digits(DataConfig):
    """Handwritten digits that come with scikit-learn: 1,500 for training, 297 for testing.

    The 8x8 images of 17 grey levels are scaled to 0-255, enlarged to 28x28 (Pillow, bilinear) and
    zero-padded by 2 to 32x32x1, which is how NVAE sees MNIST; binarised. A fixed permutation
    splits them.

    Source: `sklearn.datasets.load_digits`, the test set of the UCI "Optical Recognition of
    Handwritten Digits".
    """

    name: ClassVar[str] = "digits"

    @property
    def image(self) -> ImageSpec:
        return ImageSpec(32, 32, 1, border=2, binarize=True)

    def open(self) -> Dataset:
        from PIL import Image
        from sklearn.datasets import load_digits

        digits = load_digits()
        grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        enlarged = [
            Image.fromarray(image).resize((28, 28), Image.Resampling.BILINEAR) for image in grey
        ]
        images = np.stack([np.asarray(image) for image in enlarged])[..., np.newaxis]
        images = self.image.with_border(images)
        order = np.random.default_rng(0).permutation(len(images))
        return Dataset(
            name=self.name,
            image=self.image,
            train=images[order[:1500]],
            test=images[order[1500:]],
            labels={"train": digits.target[order[:1500]], "test": digits.target[order[1500:]]},
        )


@dataclasses.dataclass(frozen=True)
class Photos(DataConfig):
    """Crops of the two photographs (427x640, RGB) that come with scikit-learn.

    The left 70 % of both (448 columns) are for training: example i is a random crop of photograph
    i mod 2, at a place drawn anew in each epoch. The right 30 % (192 columns) are for testing: the
    grid of crops that do not overlap, from the top left corner on, 2 x (427 // h) x (192 // w) of
    them: 156 at 32x32.

    Keep the attribution wherever crops are shown, here as README.txt of scikit-learn's
    `datasets/images` gives it: some rights reserved by danielbuechele, both CC BY 2.0
    (creativecommons.org/licenses/by/2.0); `china.jpg`,
    flickr.com/photos/danielbuechele/6061409035, and `flower.jpg`,
    flickr.com/photos/vultilion/6056698931.

    Source: `sklearn.datasets.load_sample_images`.
    """

    name: ClassVar[str] = "photos"

    size: int | tuple[int, int] = 32  # pixels of a crop's side, or (height, width)
    crops_per_epoch: int = 1024  # training examples per epoch

    def __post_init__(self):
        height, width = positive_sides(self.size)
        limits = _PHOTO_SIZE[0], _PHOTO_SIZE[1] - _BOUNDARY
        fits = height <= limits[0] and width <= limits[1]
        allowed = f"at most {limits[0]} high and {limits[1]} wide"
        require("data.size", self.size, fits, allowed)
        require("data.crops_per_epoch", self.crops_per_epoch, self.crops_per_epoch > 0, "1 or more")

    @property
    def image(self) -> ImageSpec:
        return ImageSpec(*positive_sides(self.size), 3)

    def open(self) -> Dataset:
        from sklearn.datasets import load_sample_images

        images = np.stack(load_sample_images().images)
        train, test = images[:, :, :_BOUNDARY], images[:, :, _BOUNDARY:]
        height, width, _ = self.image.shape
        return Dataset(
            name=self.name,
            image=self.image,
            train=_Cycle(train, self.crops_per_epoch),
            test=_grid(test, height, width),
            flip=True,
            random_crop=True,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class _Cycle:
    """`length` examples that go through `images` again and again."""

    images: np.ndarray
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int, /) -> np.ndarray:
        return self.images[index % len(self.images)]


def _grid(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """All crops on the grid of (N, H, W, C) images: (N * (H // h) * (W // w), h, w, C)."""
    number, full_height, full_width, channels = images.shape
    rows, columns = full_height // height, full_width // width
    tiles = images[:, : rows * height, : columns * width].reshape(
        number, rows, height, columns, width, channels
    )
    return tiles.swapaxes(2, 3).reshape(-1, height, width, channels)
