"""How fast batches are read, by our loader and by torch's.

There are three kinds of data on disk, made from scikit-learn's photographs and stored as LMDB
files: CIFAR-like (32×32 PNG images), CelebA-like (178×218 JPEG images, of which the face is cropped
and resized to 64×64) and FFHQ-like (256×256 PNG images). Where torch is installed, its DataLoader
reads the same source, in turns with ours: one image at a time, as it reads any dataset that has no
`__getitems__`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import itertools
import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from nvae_jax.data.images import ImageReader, crop_and_resize
from nvae_jax.data.loader import train_batches
from nvae_jax.data.loading import LoadingConfig
from nvae_jax.data.sources import Dataset, Source
from nvae_jax.data.sources.base import Decoded
from nvae_jax.data.sources.lmdb import LmdbRecords
from nvae_jax.image_spec import ImageSpec
from nvae_jax.measuring.results import markdown
from nvae_jax.measuring.timing import images_per_second

FACE = functools.partial(crop_and_resize, box=(15, 40, 163, 188), height=64, width=64)


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of data.

    Attributes:
      height: of the stored images, in pixels.
      width: of the stored images, in pixels.
      file_format: in which they are stored.
      reader: how they are read.
      batch_size: images per batch.
    """

    height: int
    width: int
    file_format: str
    reader: ImageReader
    batch_size: int


KINDS = {
    "CIFAR-like 32² PNG": Kind(32, 32, "png", ImageReader(), 256),
    "CelebA-like JPEG to 64²": Kind(218, 178, "jpeg", ImageReader(3, FACE), 128),
    "FFHQ-like 256² PNG": Kind(256, 256, "png", ImageReader(), 32),
}


@dataclasses.dataclass(frozen=True)
class Record:
    """Images per second of one loader with one number of workers, one value per repetition."""

    kind: str
    loader: str
    num_workers: int
    images_per_second: list[float]


def measure_loading(
    workers: Sequence[int] = (0, 1, 2), repetitions: int = 5, seconds: float = 2.0
) -> list[Record]:
    """Images per second for every kind, loader and number of workers.

    The loaders take turns, so that other work on the machine slows down both, and each is closed
    before the next one starts. The start of worker processes is not counted.

    Args:
      workers: numbers of worker processes; 0 reads in this process.
      repetitions: measurements of each.
      seconds: duration of one measurement.
    """
    records = []
    with tempfile.TemporaryDirectory() as folder:
        for name, kind in KINDS.items():
            source = make_source(os.path.join(folder, kind.file_format + str(kind.height)), kind)
            for num_workers in workers:
                rates: dict[str, list[float]] = {loader: [] for loader in LOADERS}
                turns = itertools.product(range(repetitions), LOADERS.items())
                for _, (loader, start) in turns:
                    with contextlib.suppress(ImportError), start(source, kind, num_workers) as b:
                        rates[loader].append(images_per_second(b, kind.batch_size, seconds))
                records += [
                    Record(name, loader, num_workers, values)
                    for loader, values in rates.items()
                    if values
                ]
    return records


def make_source(path: str, kind: Kind, number: int = 1024) -> Source:
    """Writes `number` crops of photographs to an LMDB file at `path` and opens it."""
    import lmdb
    from sklearn.datasets import load_sample_images

    photos = [Image.fromarray(image) for image in load_sample_images().images]
    rng = np.random.default_rng(0)
    with lmdb.open(path, map_size=2**30) as file, file.begin(write=True) as transaction:
        for i in range(number):
            photo = photos[i % len(photos)]
            left = int(rng.integers(photo.width - kind.width + 1))
            top = int(rng.integers(photo.height - kind.height + 1))
            stream = io.BytesIO()
            crop = photo.crop((left, top, left + kind.width, top + kind.height))
            crop.save(stream, kind.file_format)
            transaction.put(str(i).encode(), stream.getvalue())
    return Decoded(LmdbRecords(path), kind.reader)


@contextlib.contextmanager
def _ours(source: Source, kind: Kind, num_workers: int) -> Iterator[Iterator[Any]]:
    """Shuffled batches by our loader."""
    dataset = Dataset("photos", ImageSpec(*source[0].shape), train=source, test=source)
    loading = LoadingConfig(num_workers=num_workers)
    batches = train_batches(dataset, kind.batch_size, seed=0, loading=loading)
    yield batches
    batches.close()


@contextlib.contextmanager
def _torch(source: Any, kind: Kind, num_workers: int) -> Iterator[Iterator[Any]]:
    """Shuffled batches of the same source by torch's DataLoader, epoch after epoch."""
    from torch.utils.data import DataLoader

    loader: Any = DataLoader(
        source,
        batch_size=kind.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        multiprocessing_context="spawn" if num_workers else None,
        collate_fn=_stack,
    )
    yield itertools.chain.from_iterable(itertools.repeat(loader))
    loader._iterator = None  # ends the workers


LOADERS = {"nvae_jax": _ours, "torch": _torch}


def _stack(images: list[np.ndarray]) -> Any:
    """A batch as a tensor, which torch moves between processes without a copy."""
    import torch

    return torch.from_numpy(np.stack(images))


def table(records: list[Record]) -> str:
    """Medians of the records, and their spread, as a Markdown table."""
    rows = []
    for r in records:
        rates = r.images_per_second
        row = {"data": r.kind, "workers": str(r.num_workers), "loader": r.loader}
        row |= {"images/s": f"{statistics.median(rates):,.0f}"}
        rows.append(row | {"lowest": f"{min(rates):,.0f}", "highest": f"{max(rates):,.0f}"})
    return "\n".join(markdown(rows))
