"""The datasets of the paper and of the original implementation, prepared as those prepare them.

Each comes from TensorFlow Datasets' folder `data_dir`, where `nvae_jax.data.prepare` puts it. Where
the original reads LMDB files, the option `lmdb` names a folder with its `train.lmdb` and
`validation.lmdb`, and these are read instead.
"""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from nvae_jax.data.images import ImageReader, cover, cover_and_crop, crop_and_resize
from nvae_jax.data.lsun import NUM_IMAGES
from nvae_jax.data.sources.base import DataConfig, Dataset, Decoded, Recipe, Source, read_many
from nvae_jax.data.sources.lmdb import LmdbRecords, read_levels
from nvae_jax.data.sources.tfds import open_split
from nvae_jax.errors import require
from nvae_jax.image_spec import ImageSpec

_DIGITS = ImageSpec(32, 32, 1, border=2, binarize=True)  # 28x28, padded
_CELEBA_FACE = (15, 40, 163, 188)  # left, top, right, bottom of 178x218 pixels


@dataclasses.dataclass(frozen=True)
class Prepared(DataConfig):
    """A dataset in TFDS's folder, of which the subclass says what is there and what it shows."""

    data_dir: str | None = None  # the folder of prepared datasets; None: TFDS's usual one

    stored: ClassVar[Recipe]
    shown: ClassVar[ImageSpec]
    reader: ClassVar[ImageReader] = ImageReader()  # of the encoded images
    flip: ClassVar[bool] = True

    @property
    def recipe(self) -> Recipe | None:
        return self.stored

    @property
    def image(self) -> ImageSpec:
        return self.shown

    def open(self) -> Dataset:
        train, test = self._sources()
        return Dataset(self.name, self.image, train, test, flip=self.flip)

    def _sources(self) -> list[Source]:
        """The sources of both splits."""
        builder, splits = self.stored.builder, self.stored.splits
        return [Decoded(open_split(builder, s, self.data_dir), self.reader) for s in splits]


@dataclasses.dataclass(frozen=True)
class PreparedOrLmdb(Prepared):
    """A prepared dataset that can be read from the original implementation's LMDB files, too."""

    lmdb: str | None = None  # a folder with train.lmdb and validation.lmdb, to read instead

    encoded: ClassVar[bool] = False  # whether the LMDB files hold image files and not levels

    @property
    def recipe(self) -> Recipe | None:
        return self.stored if self.lmdb is None else None

    def _sources(self) -> list[Source]:
        if self.lmdb is None:
            return super()._sources()
        height, width, channels = self.image.shape
        levels = functools.partial(read_levels, height=height, width=width, channels=channels)
        read: Callable[[Any], np.ndarray] = self.reader if self.encoded else levels
        folder = os.path.realpath(os.path.expanduser(self.lmdb))
        files = [os.path.join(folder, f"{split}.lmdb") for split in ("train", "validation")]
        return [Decoded(LmdbRecords(file), read) for file in files]


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


@dataclasses.dataclass(frozen=True)
class Cifar10(Prepared):
    """CIFAR-10: 50,000 images of 32x32x3 to train and 10,000 to test, flipped in training."""

    name = "cifar10"
    stored = Recipe(
        builder="cifar10",
        splits=("train", "test"),
        files=("cifar-10-binary.tar.gz",),
        images=60_000,
        image_bytes=32 * 32 * 3,
    )
    shown = ImageSpec(32, 32, 3)


def _imagenet(size: int) -> Recipe:
    return Recipe(
        builder=f"downsampled_imagenet/{size}x{size}",
        splits=("train", "validation"),
        files=(f"train_{size}x{size}.tar", f"valid_{size}x{size}.tar"),
        images=1_331_148,
        image_bytes=size * size * 3,
        by_hand="image-net.org no longer offers the files of van den Oord's downsampling; find "
        "them by their names where datasets are mirrored. They are checked. The archives that "
        "image-net.org offers now are another downsampling, with other likelihoods.",
    )


@dataclasses.dataclass(frozen=True)
class Imagenet32(PreparedOrLmdb):
    """ImageNet in van den Oord's downsampling to 32x32x3, flipped in training.

    1,281,149 images to train and 49,999 to test.
    """

    name = "imagenet32"
    stored = _imagenet(32)
    shown = ImageSpec(32, 32, 3)


@dataclasses.dataclass(frozen=True)
class Imagenet64(PreparedOrLmdb):
    """ImageNet in van den Oord's downsampling to 64x64x3, flipped in training.

    1,281,149 images to train and 49,999 to test.
    """

    name = "imagenet64"
    stored = _imagenet(64)
    shown = ImageSpec(64, 64, 3)


@dataclasses.dataclass(frozen=True)
class Celeba64(PreparedOrLmdb):
    """CelebA, aligned faces cut out and resized to 64x64x3, flipped in training.

    162,770 images to train; the test split is CelebA's validation split of 19,867, on which the
    paper scores.
    """

    name = "celeba64"
    stored = Recipe(
        builder="celeb_a",
        splits=("train", "validation"),
        files=(
            "img_align_celeba.zip",
            "list_eval_partition.txt",
            "list_attr_celeba.txt",
            "list_landmarks_align_celeba.txt",
            "identity_CelebA.txt",
        ),
        images=202_599,
        image_bytes=10_000,
        by_hand="Google Drive refuses files that many people fetch; a browser gets them, from "
        "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html or the addresses above.",
    )
    shown = ImageSpec(64, 64, 3)
    reader = ImageReader(
        3, functools.partial(crop_and_resize, box=_CELEBA_FACE, height=64, width=64)
    )
    encoded = True


@dataclasses.dataclass(frozen=True)
class Celebahq256(PreparedOrLmdb):
    """CelebA-HQ: 27,000 faces of 256x256x3 to train and 3,000 to test, flipped in training.

    The split is that of Glow's release.
    """

    name = "celebahq256"
    stored = Recipe(
        builder="celebahq256",
        splits=("train", "validation"),
        files=("https://openaipublic.azureedge.net/glow-demo/data/celeba-tfr.tar",),
        images=30_000,
        image_bytes=2 * 256 * 256 * 3,  # unpacked, and as PNG
    )
    shown = ImageSpec(256, 256, 3)


@dataclasses.dataclass(frozen=True)
class Ffhq256(PreparedOrLmdb):
    """FFHQ: 63,000 faces resized from 1024x1024 to 256x256x3, 7,000 to test; flipped in training.

    The original's split is a random one that was never published; ours is a fixed permutation.
    """

    name = "ffhq256"
    stored = Recipe(
        builder="ffhq256",
        splits=("train", "validation"),
        files=(),
        images=70_000,
        image_bytes=2 * 256 * 256 * 3,  # converted, and in the dataset
        by_hand="https://github.com/NVlabs/ffhq-dataset says how to fetch images1024x1024 (90 GB).",
    )
    shown = ImageSpec(256, 256, 3)


@dataclasses.dataclass(frozen=True)
class Lsun(DataConfig):
    """A category of LSUN scenes: the shorter side resized to `size`, then cut to a square.

    At random in training, which flips images too, and in the middle to test; the test split is
    LSUN's validation split of 300.
    """

    name: ClassVar[str] = "lsun"

    category: str  # one of nvae_jax.data.lsun's
    size: int  # pixels of the square; LSUN is stored with a shorter side of 256
    data_dir: str | None = None  # the folder of prepared datasets; None: TFDS's usual one

    def __post_init__(self):
        known = self.category in NUM_IMAGES
        require("data.category", self.category, known, ", ".join(NUM_IMAGES))
        require("data.size", self.size, 1 <= self.size <= 256, "1 to 256")

    @property
    def recipe(self) -> Recipe:
        return Recipe(
            builder=f"lsun_scenes/{self.category}",
            splits=("train", "validation"),
            files=tuple(f"{self.category}_{split}_lmdb.zip" for split in ("train", "val")),
            images=NUM_IMAGES[self.category],
            image_bytes=3 * 20_000,  # in the archive, unpacked, and in the dataset
        )

    @property
    def image(self) -> ImageSpec:
        return ImageSpec(self.size, self.size, 3)

    def open(self) -> Dataset:
        train, test = (
            Decoded(
                open_split(self.recipe.builder, split, self.data_dir),
                ImageReader(3, functools.partial(geometry, height=self.size, width=self.size)),
            )
            for split, geometry in zip(self.recipe.splits, (cover, cover_and_crop), strict=True)
        )
        name = f"lsun_{self.category}{self.size}"
        return Dataset(name, self.image, train, test, flip=True, random_crop=True)


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
