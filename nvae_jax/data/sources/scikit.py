"""Real images that come with scikit-learn, so that every machine has them."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from nvae_jax.data.sources.base import Dataset


def digits() -> Dataset:
    """Handwritten digits that come with scikit-learn: 1,500 for training, 297 for testing.

    The 8x8 images of 17 grey levels are scaled to 0-255, enlarged to 28x28 (Pillow, bilinear) and
    zero-padded by 2 to 32x32x1, which is how NVAE sees MNIST; binarised. A fixed permutation
    splits them.

    Source: `sklearn.datasets.load_digits`, the test set of the UCI "Optical Recognition of
    Handwritten Digits".
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    grey = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
    enlarged = [
        Image.fromarray(image).resize((28, 28), Image.Resampling.BILINEAR) for image in grey
    ]
    border = 2
    padding = ((0, 0), (border, border), (border, border))
    images = np.pad(np.stack([np.asarray(image) for image in enlarged]), padding)[..., np.newaxis]
    order = np.random.default_rng(0).permutation(len(images))
    return Dataset(
        name="digits",
        image_shape=(32, 32, 1),
        train=images[order[:1500]],
        test=images[order[1500:]],
        binarize=True,
        border=border,
    )


def photos(size: int | Sequence[int] = 32, crops_per_epoch: int = 1024) -> Dataset:
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

    Args:
      size: pixels of a crop, an int or (h, w); h from 1 to 427, w from 1 to 192.
      crops_per_epoch: training examples in an epoch, at least 1.

    Raises:
      ValueError: a value that is not allowed; the message names `data.size` or
        `data.crops_per_epoch`.

    Source: `sklearn.datasets.load_sample_images`.
    """
    from sklearn.datasets import load_sample_images

    images = np.stack(load_sample_images().images)
    boundary = images.shape[2] * 7 // 10
    train, test = images[:, :, :boundary], images[:, :, boundary:]

    shape = tuple(size) if isinstance(size, Sequence) else (size, size)
    limits = test.shape[1:3]
    fits = [isinstance(s, int) and 1 <= s <= limit for s, limit in zip(shape, limits, strict=False)]
    if len(shape) != 2 or not all(fits):
        raise ValueError(
            f"data.size is {size!r}; allowed: an int or (h, w), "
            f"h from 1 to {limits[0]} and w from 1 to {limits[1]}"
        )
    if crops_per_epoch < 1:
        raise ValueError(f"data.crops_per_epoch is {crops_per_epoch!r}; allowed: at least 1")
    height, width = shape
    return Dataset(
        name="photos",
        image_shape=(height, width, 3),
        train=_Cycle(train, crops_per_epoch),
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
