"""What a dataset is, and what the sources behind it have in common."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from nvae_jax.data.images import ImageReader


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
    """A training split, a fixed test split, and how the model is to see them.

    Attributes:
      name: the dataset's name, for messages.
      image_shape: (H, W, C) in pixels as the model sees an image, padding included.
      train: training images, of `image_shape`, or larger where `random_crop` is set.
      test: test images, of `image_shape`.
      binarize: whether pixels are Bernoulli draws whose means are the grey levels.
      flip: whether training images are mirrored left to right at random.
      border: pixels of zero padding on each side; the likelihood leaves them out.
      random_crop: whether the loader cuts every training image to `image_shape` at a place drawn
        anew in each epoch.
    """

    name: str
    image_shape: tuple[int, int, int]
    train: Source
    test: Source
    binarize: bool = False
    flip: bool = False
    border: int = 0
    random_crop: bool = False


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
            raise ValueError(f"{self.records.describe(index)} cannot be read: {error}") from error


def read_many(source: Source, indices: Iterable[int]) -> Sequence[np.ndarray]:
    """The images of a source at `indices`, together where it has a faster way than one by one."""
    indices = [int(i) for i in indices]
    return source.many(indices) if hasattr(source, "many") else [source[i] for i in indices]


def require(field: str, value: Any, condition: bool, allowed: str) -> None:
    """Raises a ValueError that names a dataset's option and what it allows, unless `condition`."""
    if not condition:
        raise ValueError(f"data.{field} is {value!r}; allowed: {allowed}")
