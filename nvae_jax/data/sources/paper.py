"""The datasets of the paper and of the original implementation, prepared as those prepare them.

Each comes from TensorFlow Datasets' folder `data_dir`, where `nvae_jax.data.prepare` puts it. Where
the original reads LMDB files, the option `lmdb` names a folder with its `train.lmdb` and
`validation.lmdb`, and these are read instead.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence

import numpy as np

from nvae_jax.data.images import ImageReader, cover, cover_and_crop, crop_and_resize
from nvae_jax.data.sources.base import Dataset, Decoded, Source, read_many, require
from nvae_jax.data.sources.lmdb import LmdbRecords, read_levels
from nvae_jax.data.sources.tfds import open_split

LSUN_CATEGORIES = (
    "bedroom",
    "bridge",
    "church_outdoor",
    "classroom",
    "conference_room",
    "dining_room",
    "kitchen",
    "living_room",
    "restaurant",
    "tower",
)

_MNIST_BORDER = 2  # 28x28 digits in 32x32 pixels
_CELEBA_FACE = (15, 40, 163, 188)  # left, top, right, bottom of 178x218 pixels


def mnist(data_dir: str | None = None) -> Dataset:
    """MNIST: 60,000 digits to train and 10,000 to test, padded to 32x32x1, binarised.

    Args:
      data_dir: the folder of prepared datasets; None: TFDS's usual one.

    Raises:
      ValueError: it is not prepared, or broken.
    """
    return _digits("mnist", "mnist", data_dir)


def omniglot(data_dir: str | None = None) -> Dataset:
    """OMNIGLOT at 28x28 (Burda et al., 2015): 24,345 characters to train and 8,070 to test.

    Padded to 32x32x1, binarised. Arguments and errors as `mnist`'s.
    """
    return _digits("omniglot", "omniglot28", data_dir)


def stacked_mnist(data_dir: str | None = None, seed: int = 0) -> Dataset:
    """MNIST digits stacked as colours, 32x32x3: 120,000 to train and 20,000 to test, not binarised.

    Each channel goes through all digits twice, in two permutations of its own that are drawn once.

    Args:
      data_dir: the folder of prepared datasets; None: TFDS's usual one.
      seed: of the permutations, >= 0.

    Raises:
      ValueError: MNIST is not prepared, or broken.
    """
    require("seed", seed, isinstance(seed, int) and seed >= 0, "0 or more")
    single = mnist(data_dir)
    height, width, _ = single.image_shape
    return dataclasses.replace(
        single,
        name="stacked_mnist",
        image_shape=(height, width, 3),
        train=Stacked(single.train, seed),
        test=Stacked(single.test, seed + 1),
        binarize=False,
    )


def cifar10(data_dir: str | None = None) -> Dataset:
    """CIFAR-10: 50,000 images of 32x32x3 to train and 10,000 to test, flipped in training.

    Arguments and errors as `mnist`'s.
    """
    return _images("cifar10", ("cifar10", "train", "test"), 32, ImageReader(), data_dir)


def imagenet32(data_dir: str | None = None, lmdb: str | None = None) -> Dataset:
    """ImageNet in van den Oord's downsampling: 1,281,149 images of 32x32x3, 49,999 to test; flips.

    Args:
      data_dir: the folder of prepared datasets; None: TFDS's usual one.
      lmdb: a folder with the original implementation's LMDB files instead.

    Raises:
      ValueError: it is not prepared, or broken.
    """
    stored = ("downsampled_imagenet/32x32", "train", "validation")
    return _images("imagenet32", stored, 32, ImageReader(), data_dir, lmdb)


def imagenet64(data_dir: str | None = None, lmdb: str | None = None) -> Dataset:
    """ImageNet in van den Oord's downsampling: 1,281,149 images of 64x64x3, 49,999 to test; flips.

    Arguments and errors as `imagenet32`'s.
    """
    stored = ("downsampled_imagenet/64x64", "train", "validation")
    return _images("imagenet64", stored, 64, ImageReader(), data_dir, lmdb)


def celeba64(data_dir: str | None = None, lmdb: str | None = None) -> Dataset:
    """CelebA, aligned faces cut out and resized to 64x64x3, flipped in training.

    162,770 images to train; the test split is CelebA's validation split of 19,867, on which the
    paper scores. Arguments and errors as `imagenet32`'s.
    """
    geometry = functools.partial(crop_and_resize, box=_CELEBA_FACE, height=64, width=64)
    stored = ("celeb_a", "train", "validation")
    return _images("celeba64", stored, 64, ImageReader(3, geometry), data_dir, lmdb, encoded=True)


def celebahq256(data_dir: str | None = None, lmdb: str | None = None) -> Dataset:
    """CelebA-HQ: 27,000 faces of 256x256x3 to train and 3,000 to test, flipped in training.

    The split is that of Glow's release. Arguments and errors as `imagenet32`'s.
    """
    stored = ("celebahq256", "train", "validation")
    return _images("celebahq256", stored, 256, ImageReader(), data_dir, lmdb)


def ffhq256(data_dir: str | None = None, lmdb: str | None = None) -> Dataset:
    """FFHQ: 63,000 faces resized from 1024x1024 to 256x256x3, 7,000 to test; flipped in training.

    The original's split is a random one that was never published; ours is a fixed permutation.
    Arguments and errors as `imagenet32`'s.
    """
    stored = ("ffhq256", "train", "validation")
    return _images("ffhq256", stored, 256, ImageReader(), data_dir, lmdb)


def lsun(category: str, size: int, data_dir: str | None = None) -> Dataset:
    """A category of LSUN scenes: the shorter side resized to `size`, then cut to a square.

    At random in training, which flips images too, and in the middle to test; the test split is
    LSUN's validation split of 300.

    Args:
      category: one of `LSUN_CATEGORIES`.
      size: pixels of the square, from 1 to 256, the shorter side that LSUN is stored with.
      data_dir: the folder of prepared datasets; None: TFDS's usual one.

    Raises:
      ValueError: a value that is not allowed; it is not prepared, or broken.
    """
    require("category", category, category in LSUN_CATEGORIES, ", ".join(LSUN_CATEGORIES))
    require("size", size, isinstance(size, int) and 1 <= size <= 256, "1 to 256")
    train, test = (
        Decoded(
            open_split(f"lsun_scenes/{category}", split, data_dir),
            ImageReader(3, functools.partial(geometry, height=size, width=size)),
        )
        for split, geometry in (("train", cover), ("validation", cover_and_crop))
    )
    return Dataset(
        name=f"lsun_{category}{size}",
        image_shape=(size, size, 3),
        train=train,
        test=test,
        flip=True,
        random_crop=True,
    )


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


def _digits(name: str, stored: str, data_dir: str | None) -> Dataset:
    """A dataset of grey 28x28 images that are binarised."""
    reader = ImageReader(channels=1, border=_MNIST_BORDER)
    train, test = (Decoded(open_split(stored, s, data_dir), reader) for s in ("train", "test"))
    return Dataset(
        name=name,
        image_shape=(32, 32, 1),
        train=train,
        test=test,
        binarize=True,
        border=_MNIST_BORDER,
    )


def _images(
    name: str,
    stored: tuple[str, str, str],
    size: int,
    reader: ImageReader,
    data_dir: str | None,
    lmdb: str | None = None,
    encoded: bool = False,
) -> Dataset:
    """A dataset of square colour images that are flipped in training.

    Args:
      name: the dataset's.
      stored: its name in TFDS and its splits there to train and to test.
      size: pixels of a side.
      reader: of encoded images.
      data_dir: TFDS's folder.
      lmdb: a folder with LMDB files to read instead.
      encoded: whether these hold image files and not levels.
    """
    sources: Sequence[Source]
    if lmdb is None:
        builder, *splits = stored
        sources = [Decoded(open_split(builder, split, data_dir), reader) for split in splits]
    else:
        levels = functools.partial(read_levels, height=size, width=size, channels=3)
        read: Callable[[bytes], np.ndarray] = reader if encoded else levels
        folder = os.path.realpath(os.path.expanduser(lmdb))
        sources = [
            Decoded(LmdbRecords(os.path.join(folder, f"{split}.lmdb")), read)
            for split in ("train", "validation")
        ]
    train, test = sources
    return Dataset(name=name, image_shape=(size, size, 3), train=train, test=test, flip=True)
