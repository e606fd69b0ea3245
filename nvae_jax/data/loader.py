"""Batches of a dataset by Grain: endless shuffled epochs to train on, one full pass to evaluate on.

A training batch is a pure function of (seed, step). No state has to be saved to resume a run: the
step is the position. Batches do not depend on the number of threads or worker processes, and the
processes of a multi-host run each read their own contiguous share of the same global batch.
"""

import functools
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np
from absl import flags

from nvae_jax.data.loading import LoadingConfig
from nvae_jax.data.sources import Dataset, Source, read_many
from nvae_jax.errors import ConfigError, require

Batch = dict[str, np.ndarray]

# Seconds to read an example from which on threads help. What is quicker they may slow down, handing
# Python's lock to each other.
_SLOW = 3e-4
_TIMED = 2  # examples that are read to know

_DEFAULT_LOADING = LoadingConfig()

_ORDER, _CROP = 0, 1  # what a random stream is for, so that no two are the same


def steps_per_epoch(dataset: Dataset, batch_size: int) -> int:
    """Whole batches in one pass over the training split: what schedules count as an epoch.

    The stream of examples drops none: where `batch_size` does not divide their number, the rest of
    a pass begins the next batch, and so passes grow longer than schedules' epochs by that rest.

    Args:
      dataset: the dataset.
      batch_size: images in a global batch.

    Raises:
      ConfigError: `batch_size` is not from 1 to the number of training examples.
    """
    number = len(dataset.train)
    allowed = f"1 to {number}, the training examples of {dataset.name} in an epoch"
    require("training.batch_size", batch_size, 1 <= batch_size <= number, allowed)
    return len(dataset.train) // batch_size


def filled_batch_size(dataset: Dataset, batch_size: int) -> int:
    """The batch size for images of one's own, of which there may be fewer than a preset expects.

    It is halved until the training images fill a batch.
    """
    while batch_size > len(dataset.train):
        batch_size //= 2
    return batch_size


def train_batches(
    dataset: Dataset,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    *,
    loading: LoadingConfig = _DEFAULT_LOADING,
    process_index: int = 0,
    process_count: int = 1,
    put: Callable[[Batch], Any] | None = None,
) -> grain.DatasetIterator:
    """Shuffled training batches without end, from batch `start_step` of the stream on.

    The stream of examples goes through one permutation of the training split after the other, so
    that each epoch has every example exactly once; a batch may hold the end of one epoch and the
    start of the next. Starting at any step takes the same time.

    Args:
      dataset: the dataset; it has to be picklable where there are workers.
      batch_size: images in a global batch.
      seed: of the order and of the random crops, >= 0.
      start_step: batches of the stream to leave out, >= 0.
      loading: how to read. The main module of a program that uses workers must be importable
        (`if __name__ == "__main__":`).
      process_index: which process of a multi-host run this is.
      process_count: how many there are; it divides `batch_size`.
      put: applied to each batch in a thread, one batch ahead: what brings it to the devices.

    Returns:
      An iterator over batches of B = batch_size / process_count examples: "image" uint8
      (B, H, W, C), levels 0-255; "index" int32 (B,), positions in the training split; "epoch"
      int32 (B,), from 0. Its `close()` stops the workers.

    Raises:
      ConfigError: a batch size that does not fit the split or the processes; from the iterator: an
        example that cannot be read, by the name of its file.
    """
    steps_per_epoch(dataset, batch_size)
    read = functools.partial(
        _read_training_batch,
        dataset=dataset,
        batch_size=batch_size,
        seed=seed,
        share=_share(batch_size, process_index, process_count),
    )
    if loading.num_workers and not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags; without absl.app, defaults.
    workers = grain.MultiprocessingOptions(
        loading.num_workers, per_worker_buffer_size=loading.prefetch
    )
    stream = grain.MapDataset.range(start_step, sys.maxsize).map(read)
    options = _read_options(loading.prefetch, dataset.train)
    batches = stream.to_iter_dataset(options).mp_prefetch(workers)
    if put is not None:
        batches = grain.experimental.ThreadPrefetchIterDataset(
            batches.map(put), prefetch_buffer_size=1
        )
    return iter(batches)


def eval_batches(
    source: Source,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    index: np.ndarray | None = None,
) -> Iterator[Batch]:
    """One pass over a split in order; the last batch is filled up with its last example.

    Args:
      source: the split.
      batch_size: images in a global batch.
      process_index: which process of a multi-host run this is.
      process_count: how many there are; it divides `batch_size`.
      index: (N,) the positions in the split to read, in this order; None: the whole split.

    Returns:
      An iterator over ceil(N / batch_size) batches of B = batch_size / process_count examples:
      "image" uint8 (B, H, W, C), levels 0-255; "index" int32 (B,), positions in the split.

    Raises:
      ConfigError: a batch size that does not fit the processes; from the iterator: an example that
        cannot be read.
    """
    share = _share(batch_size, process_index, process_count)
    number = len(source) if index is None else len(index)

    def read(step: int) -> Batch:
        position = np.minimum(step * batch_size + share, number - 1)
        chosen = position if index is None else index[position]
        return {
            "image": np.stack(read_many(source, chosen)),
            "index": np.asarray(chosen, np.int32),
        }

    steps = -(-number // batch_size)
    options = _read_options(2, source)
    return iter(grain.MapDataset.range(steps).map(read).to_iter_dataset(options))


def _read_training_batch(
    step: int, *, dataset: Dataset, batch_size: int, seed: int, share: np.ndarray
) -> Batch:
    """The places `share` (B,) of the global batch at a step."""
    number = len(dataset.train)
    epoch, place = np.divmod(step * batch_size + share, number)
    index = np.empty_like(place)
    for e in np.unique(epoch):
        index[epoch == e] = _epoch_order(number, seed, int(e))[place[epoch == e]]
    images = read_many(dataset.train, index)
    if dataset.random_crop:
        height, width, _ = dataset.image.shape
        images = [
            random_crop(image, height, width, np.random.default_rng((seed, _CROP, e, i)))
            for image, e, i in zip(images, epoch.tolist(), index.tolist(), strict=True)
        ]
    return {
        "image": np.stack(images),
        "index": index.astype(np.int32),
        "epoch": epoch.astype(np.int32),
    }


# Two, because batches are read ahead across the end of an epoch. Grain's own shuffle needs no
# memory, but costs 20 us per example at 1,500 examples and milliseconds at 10.
@functools.lru_cache(maxsize=2)
def _epoch_order(number: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of `number` examples in an epoch."""
    return np.random.default_rng((seed, _ORDER, epoch)).permutation(number)


def random_crop(image: np.ndarray, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A view of `height` x `width` pixels into (H, W, C), every place equally likely."""
    top = rng.integers(image.shape[0] - height, endpoint=True)
    left = rng.integers(image.shape[1] - width, endpoint=True)
    return image[top : top + height, left : left + width]


def _share(batch_size: int, process_index: int, process_count: int) -> np.ndarray:
    """The places in a global batch that one process reads, in a row: (B,)."""
    if batch_size < 1 or batch_size % process_count:
        raise ConfigError(
            f"batch_size is {batch_size}; allowed: "
            f"positive multiples of the number of processes, {process_count}"
        )
    local = batch_size // process_count
    return process_index * local + np.arange(local)


def _read_options(prefetch: int, source: Source) -> grain.ReadOptions:
    """So many batches ahead, by as many threads where reading is slow enough."""
    number = min(_TIMED, len(source))
    seconds = []
    for _ in range(2):  # the first time may open a file
        start = time.perf_counter()
        read_many(source, range(number))
        seconds.append(time.perf_counter() - start)
    threads = prefetch if min(seconds) > _SLOW * number else 1
    # An element is a whole batch here: Grain's defaults would keep 500 of them.
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
