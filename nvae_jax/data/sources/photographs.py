"""Photographs, prepared as the paper and the original implementation prepare them."""

import dataclasses
import functools
from typing import ClassVar, Literal

from nvae_jax.data.images import ImageReader, cover, cover_and_crop, crop_and_resize
from nvae_jax.data.lsun import NUM_IMAGES
from nvae_jax.data.sources.base import DataConfig, Dataset, Decoded, Recipe
from nvae_jax.data.sources.prepared import Prepared, PreparedOrLmdb
from nvae_jax.data.sources.tfds import open_split
from nvae_jax.errors import require
from nvae_jax.fields import require_literals
from nvae_jax.image_spec import ImageSpec

# Left, top, right, bottom of 178x218 pixels: the paper's, and 168 pixels in the middle.
_CELEBA_CROPS = {"face": (15, 40, 163, 188), "center": (5, 25, 173, 193)}


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
    encoded = True

    crop: Literal["face", "center"] = "face"  # the paper's 148 pixels, or 168 in the middle

    def __post_init__(self):
        require_literals(self, "data.")

    @property
    def decoder(self) -> ImageReader:
        box = _CELEBA_CROPS[self.crop]
        return ImageReader(3, functools.partial(crop_and_resize, box=box, height=64, width=64))


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
