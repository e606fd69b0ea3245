"""Batches of a dataset by Grain: endless shuffled epochs to train on, one full pass to evaluate on.

A training batch is a pure function of (seed, step). No state has to be saved to resume a run: the
step is the position. Batches do not depend on the number of threads or worker processes, and the
processes of a multi-host run each read their own contiguous share of the same global batch.
"""

import functools
import sys
from collections.abc import Iterator

import grain
import numpy as np
from absl import flags

from nvae_jax.data.sources import Dataset, Source

Batch = dict[str, np.ndarray]

_ORDER, _CROP = 0, 1  # what a random stream is for, so that no two are the same


def steps_per_epoch(dataset: Dataset, batch_size: int) -> int:
    """Whole batches in one pass over the training split; the last partial one is dropped.

    Args:
      dataset: the dataset.
      batch_size: images in a global batch.

    Raises:
      ValueError: `batch_size` is not from 1 to the number of training examples.
    """
    if not 1 <= batch_size <= len(dataset.train):
        raise ValueError(
            f"training.batch_size is {batch_size}; allowed: 1 to {len(dataset.train)}, "
            f"the training examples of {dataset.name} in an epoch"
        )
    return len(dataset.train) // batch_size


def train_batches(
    dataset: Dataset,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    *,
    num_workers: int = 0,
    prefetch: int = 2,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """Shuffled training batches without end, from batch `start_step` of the stream on.

    Each epoch is a new permutation of the training split, cut to whole batches, so a batch never
    holds two epochs. Starting at any step takes the same time.

    Args:
      dataset: the dataset; it has to be picklable where `num_workers` > 0.
      batch_size: images in a global batch.
      seed: of the order and of the random crops, >= 0.
      start_step: batches of the stream to leave out, >= 0.
      num_workers: processes that read; 0 reads in threads of this process. The main module of a
        program that uses workers must be importable (`if __name__ == "__main__":`).
      prefetch: batches kept ready (by each worker), every one read by a thread of its own, >= 1.
      process_index: which process of a multi-host run this is.
      process_count: how many there are; it divides `batch_size`.

    Returns:
      An iterator over batches of B = batch_size / process_count examples: "image" uint8
      (B, H, W, C), levels 0-255; "index" int32 (B,), positions in the training split; "epoch"
      int32 (B,), from 0. Its `close()` stops the workers.

    Raises:
      ValueError: a batch size that does not fit the split or the processes.
    """
    read = functools.partial(
        _read_training_batch,
        dataset=dataset,
        batch_size=batch_size,
        steps=steps_per_epoch(dataset, batch_size),
        seed=seed,
        share=_share(batch_size, process_index, process_count),
    )
    if num_workers and not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags; without absl.app, defaults.
    workers = grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=prefetch)
    stream = grain.MapDataset.range(start_step, sys.maxsize).map(read)
    return iter(stream.to_iter_dataset(_read_options(prefetch)).mp_prefetch(workers))


def eval_batches(
    source: Source, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
    """One pass over a whole split in order; the last batch is filled up to full size.

    The filling repeats the last example under a mask of 0, so that
    `sum(mask * value) / sum(mask)`, both over all batches and processes, is the split's exact mean.

    Args:
      source: the split.
      batch_size: images in a global batch.
      process_index: which process of a multi-host run this is.
      process_count: how many there are; it divides `batch_size`.

    Returns:
      An iterator over ceil(len(source) / batch_size) batches of B = batch_size / process_count
      examples: "image" uint8 (B, H, W, C), levels 0-255; "index" int32 (B,), positions in the
      split; "mask" float32 (B,), 1 for an example and 0 for filling.

    Raises:
      ValueError: a batch size that does not fit the processes.
    """
    share = _share(batch_size, process_index, process_count)

    def read(step: int) -> Batch:
        position = step * batch_size + share
        index = np.minimum(position, len(source) - 1)
        return {
            "image": np.stack([source[int(i)] for i in index]),
            "index": index.astype(np.int32),
            "mask": (position < len(source)).astype(np.float32),
        }

    steps = -(-len(source) // batch_size)
    return iter(grain.MapDataset.range(steps).map(read).to_iter_dataset(_read_options(2)))


def _read_training_batch(
    step: int, *, dataset: Dataset, batch_size: int, steps: int, seed: int, share: np.ndarray
) -> Batch:
    """The places `share` (B,) of the global batch at a step."""
    epoch, step_of_epoch = divmod(step, steps)
    index = _epoch_order(len(dataset.train), seed, epoch)[step_of_epoch * batch_size + share]
    images = [dataset.train[int(i)] for i in index]
    if dataset.random_crop:
        height, width, _ = dataset.image_shape
        images = [
            _random_crop(image, height, width, np.random.default_rng((seed, _CROP, epoch, int(i))))
            for image, i in zip(images, index, strict=True)
        ]
    return {
        "image": np.stack(images),
        "index": index.astype(np.int32),
        "epoch": np.full(len(index), epoch, np.int32),
    }


# Two, because batches are read ahead across the end of an epoch. Grain's own shuffle needs no
# memory, but takes 20 us an example at 1,500 examples and milliseconds at 10.
@functools.lru_cache(maxsize=2)
def _epoch_order(number: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of `number` examples in an epoch."""
    return np.random.default_rng((seed, _ORDER, epoch)).permutation(number)


def _random_crop(
    image: np.ndarray, height: int, width: int, rng: np.random.Generator
) -> np.ndarray:
    """A view of `height` x `width` pixels into (H, W, C), every place equally likely."""
    top = rng.integers(image.shape[0] - height, endpoint=True)
    left = rng.integers(image.shape[1] - width, endpoint=True)
    return image[top : top + height, left : left + width]


def _share(batch_size: int, process_index: int, process_count: int) -> np.ndarray:
    """The places in a global batch that one process reads, in a row: (B,)."""
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size is {batch_size}; allowed: "
            f"positive multiples of the number of processes, {process_count}"
        )
    local = batch_size // process_count
    return process_index * local + np.arange(local)


def _read_options(prefetch: int) -> grain.ReadOptions:
    # An element is a whole batch here: Grain's defaults would keep 500 of them.
    return grain.ReadOptions(num_threads=prefetch, prefetch_buffer_size=prefetch)
