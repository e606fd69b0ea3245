"""Datasets that `nvae_jax.data.prepare` puts into TensorFlow Datasets' folder `data_dir`.

Where the original implementation reads LMDB files, the option `lmdb` names a folder with its
`train.lmdb` and `validation.lmdb`, and these are read instead.
"""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from nvae_jax.data.images import ImageReader
from nvae_jax.data.sources.base import DataConfig, Dataset, Decoded, Recipe, Source
from nvae_jax.data.sources.lmdb import LmdbRecords, read_levels
from nvae_jax.data.sources.tfds import open_split
from nvae_jax.image_spec import ImageSpec


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

    @property
    def decoder(self) -> ImageReader:
        """What makes an image of a file of the dataset."""
        return self.reader

    def open(self) -> Dataset:
        train, test = self._sources()
        return Dataset(self.name, self.image, train, test, flip=self.flip)

    def _sources(self) -> list[Source]:
        """The sources of both splits."""
        builder, splits = self.stored.builder, self.stored.splits
        return [Decoded(open_split(builder, s, self.data_dir), self.decoder) for s in splits]


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
        read: Callable[[Any], np.ndarray] = self.decoder if self.encoded else levels
        folder = os.path.realpath(os.path.expanduser(self.lmdb))
        files = [os.path.join(folder, f"{split}.lmdb") for split in ("train", "validation")]
        return [Decoded(LmdbRecords(file), read) for file in files]
