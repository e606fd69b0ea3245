"""What a dataset is, how it is described, and what the sources behind it have in common."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np

from nvae_jax.data.images import ImageReader, cover_and_crop
from nvae_jax.errors import ConfigError, require
from nvae_jax.image_spec import LARGEST_SIDE, ImageSpec


class Source(Protocol):
    """Random access to images: source[i] is (H, W, C) uint8, levels 0-255, 0 <= i < len(source).

    Several threads read at the same time, and worker processes read from a pickled copy. A source
    that reads many images faster than one by one has a method `many`, from a list of indices to a
    sequence of images.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> np.ndarray: ...


class Records(Protocol):
    """Random access to what is stored for an image, before it is read as pixels.

    They may have a method `many`, too, from indices to an iterable of records.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...

    def describe(self, index: int, /) -> str:
        """Where the record is stored, for messages."""


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A training split and a fixed test split, opened.

    Attributes:
      name: the dataset's name, for messages.
      image: the images as a model sees them.
      train: training images, of `image.shape`, or larger where `random_crop` is set.
      test: test images, of `image.shape`.
      flip: whether training images are mirrored left to right at random.
      random_crop: whether the loader cuts every training image to `image.shape` at a place drawn
        anew in each epoch.
      notes: what a run's log should say about the images.
      files: by split, the size in bytes of each image file by its name; None: they are no files.
      labels: by split, what each image shows, (N,) integers, which training does not see; None: it
        is not known.
    """

    name: str
    image: ImageSpec
    train: Source
    test: Source
    flip: bool = False
    random_crop: bool = False
    notes: tuple[str, ...] = ()
    files: Mapping[str, Mapping[str, int]] | None = None
    labels: Mapping[str, np.ndarray] | None = None

    @property
    def manifest(self) -> dict[str, Any]:
        """What tells whether the images are still the same: by split, the files or the number."""
        if self.files is not None:
            return {split: dict(files) for split, files in self.files.items()}
        return {"train": len(self.train), "test": len(self.test)}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a dataset comes into TFDS's folder.

    Attributes:
      builder: its name in TFDS.
      splits: the names there of the splits to train and to test on.
      files: what to fetch: names that the builder has checksums for, or URLs.
      images: the number of images.
      image_bytes: the size of the largest image as it is stored; with `images` it tells whether
        the dataset fits the disk.
      by_hand: what to do where a program cannot fetch the files.
    """

    builder: str
    splits: tuple[str, str]
    files: tuple[str, ...]
    images: int
    image_bytes: int
    by_hand: str = ""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The section `data` of a configuration: a dataset that is not opened yet.

    Every dataset is a subclass. Its fields are the dataset's options.

    Attributes:
      name: the dataset's, as in `config.data.name`.
      is_own: whether its images are the user's, as many as there are.
      recipe: how it is prepared; None where there is nothing to prepare.
    """

    name: ClassVar[str]
    is_own: ClassVar[bool] = False

    @property
    def recipe(self) -> Recipe | None:
        return None

    @property
    def image(self) -> ImageSpec | None:
        """The images, without opening anything; None where only the files tell."""
        raise NotImplementedError

    def file_reader(self, image: ImageSpec) -> ImageReader:
        """What reads an image file as the dataset's images are evaluated.

        Args:
          image: the model's images.
        """
        height, width, channels = image.inner_shape
        fit = functools.partial(cover_and_crop, height=height, width=width)
        return ImageReader(channels, fit, image.border)

    def open(self) -> Dataset:
        """Opens the dataset.

        Raises:
          ConfigError: the data is missing, not prepared, or broken.
        """
        raise NotImplementedError

    def open_again(self, known: Mapping[str, Any]) -> Dataset:
        """As `open`, for a run that knows images of it, which stay in their splits.

        Args:
          known: what `Dataset.manifest` was.
        """
        del known  # of most datasets, images do not change sides
        return self.open()


@dataclasses.dataclass(frozen=True, eq=False)
class Decoded:
    """A source of images that are read from records.

    Attributes:
      records: what is stored.
      read: from a record to an image, (H, W, C) uint8.
    """

    records: Records
    read: Callable[[Any], np.ndarray]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int, /) -> np.ndarray:
        return self._read(index, self.read)

    def many(self, indices: list[int], /) -> list[np.ndarray]:
        """The images at `indices`."""
        reader = self.read
        if not isinstance(reader, ImageReader) or reader.geometry is not None:
            return [self[i] for i in indices]
        records = getattr(self.records, "many", functools.partial(map, self.records.__getitem__))
        with contextlib.suppress(Exception):
            return reader.many(records(indices))
        # One by one tells which one is broken; in the same way, for Pillow alone accepts more.
        return [self._read(i, lambda record: reader.many([record])[0]) for i in indices]

    def _read(self, index: int, read: Callable[[Any], np.ndarray]) -> np.ndarray:
        try:
            return read(self.records[index])
        # Pillow and the storage libraries raise all kinds of exceptions for broken data.
        except Exception as error:
            raise ConfigError(f"{self.records.describe(index)} cannot be read: {error}") from error


def check_levels(dataset: Dataset, images: int = 16) -> None:
    """Looks at a few training images for pixels that are not levels from 0 to 255.

    Raises:
      ConfigError: all of them are 0 or 1, as what is left of images that were divided by 255.
    """
    index = np.linspace(0, len(dataset.train) - 1, min(images, len(dataset.train)), dtype=int)
    highest = max(int(image.max()) for image in read_many(dataset.train, index))
    require(
        f"the highest level of {len(index)} training images of {dataset.name}",
        *(highest, highest != 1, "levels from 0 to 255, not numbers from 0 to 1"),
    )


def read_many(source: Source, indices: Iterable[int]) -> Sequence[np.ndarray]:
    """The images of a source at `indices`, together where it has a faster way than one by one."""
    indices = [int(i) for i in indices]
    return source.many(indices) if hasattr(source, "many") else [source[i] for i in indices]


def positive_sides(size: Any) -> tuple[int, int]:
    """A size in pixels, an int or (height, width), as (height, width).

    Raises:
      ConfigError: a side is not positive, or beyond any machine.
    """
    height, width = size if isinstance(size, tuple) else (size, size)
    inside = min(height, width) > 0 and max(height, width) <= LARGEST_SIDE
    allowed = f"a positive int or (height, width), up to {LARGEST_SIDE} pixels"
    require("data.size", size, inside, allowed)
    return height, width
