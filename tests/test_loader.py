import itertools

import numpy as np
import pytest
import stored
from hypothesis import given, settings
from hypothesis import strategies as st

from nvae_jax.data import loader
from nvae_jax.data.images import ImageReader
from nvae_jax.data.loader import (
    _read_options,
    eval_batches,
    steps_per_epoch,
    train_batches,
)
from nvae_jax.data.loading import LoadingConfig
from nvae_jax.data.sources import Dataset
from nvae_jax.data.sources.base import Decoded, read_many
from nvae_jax.image_spec import ImageSpec

NUMBER, BATCH = 10, 4  # an epoch is two batches and a half


def make_images(number):
    """Images of 6x5 pixels whose first channel is the index and the others the coordinates."""
    index, row, column = np.meshgrid(np.arange(number), np.arange(6), np.arange(5), indexing="ij")
    return np.stack([index, row, column], axis=-1).astype(np.uint8)


@pytest.fixture
def dataset():
    images = make_images(NUMBER)
    return Dataset("numbers", ImageSpec(3, 2, 3), train=images, test=images, random_crop=True)


def take(iterator, number):
    return list(itertools.islice(iterator, number))


def assert_equal_streams(actual, expected):
    assert len(actual) == len(expected) > 0
    for a, b in zip(actual, expected, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
            assert a[name].dtype == b[name].dtype


def epochs_of(dataset, number, **kwargs):
    """The order of examples in each of the first epochs, (number, NUMBER)."""
    steps = -(-number * NUMBER // BATCH)
    batches = take(train_batches(dataset, BATCH, **kwargs), steps)
    index = np.concatenate([batch["index"] for batch in batches])
    return index[: number * NUMBER].reshape(number, NUMBER)


def test_batches_have_the_documented_shapes_and_contents(dataset):
    assert steps_per_epoch(dataset, BATCH) == 2
    for step, batch in enumerate(take(train_batches(dataset, BATCH, seed=0), 6)):
        assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
            "image": ((BATCH, 3, 2, 3), np.uint8),
            "index": ((BATCH,), np.int32),
            "epoch": ((BATCH,), np.int32),
        }
        places = np.arange(step * BATCH, (step + 1) * BATCH)
        np.testing.assert_array_equal(batch["epoch"], places // NUMBER)
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["index"])


def test_each_epoch_is_a_permutation(dataset):
    epochs = epochs_of(dataset, 50, seed=0)
    np.testing.assert_array_equal(np.sort(epochs), np.arange(NUMBER) + np.zeros((50, 1)))
    assert len({tuple(order) for order in epochs}) == 50


@settings(max_examples=40, deadline=None)
@given(
    number=st.integers(1, 23),
    local_batches=st.integers(1, 3),
    stops=st.lists(st.tuples(st.integers(1, 5), st.sampled_from([1, 2, 3, 6])), min_size=1),
    seed=st.integers(0, 2**32),
)
def test_interrupted_epochs_have_every_example_exactly_once(number, local_batches, stops, seed):
    # Runs of some steps each, every one with another number of processes, one after the other.
    batch_size = 6 * local_batches
    number += batch_size
    images = np.zeros((number, 1, 1, 1), np.uint8)
    dataset = Dataset("counted", ImageSpec(1, 1, 1), train=images, test=images)
    seen, step = [], 0
    while len(seen) < 2 * number:
        for steps, processes in stops:
            options = {"loading": LoadingConfig(prefetch=1), "process_count": processes}
            parts = [
                train_batches(dataset, batch_size, seed, step, process_index=p, **options)
                for p in range(processes)
            ]
            for _ in range(steps):
                for part in map(next, parts):
                    seen += zip(part["epoch"].tolist(), part["index"].tolist(), strict=True)
            for part in parts:
                part.close()
            step += steps
    for epoch in range(len(seen) // number):
        examples = seen[epoch * number : (epoch + 1) * number]
        assert sorted(examples) == [(epoch, i) for i in range(number)]


def test_every_place_is_equally_likely(dataset):
    number = 1000
    epochs = epochs_of(dataset, number, seed=0)
    for column in epochs.T:
        counts = np.bincount(column, minlength=NUMBER)
        # Five standard deviations of a binomial count.
        bound = 5 * np.sqrt(number / NUMBER * (1 - 1 / NUMBER))
        assert abs(counts - number / NUMBER).max() < bound


def test_seeds_share_no_epochs(dataset):
    # As they would if an epoch's seed were the sum of the seed and the epoch.
    streams = [{tuple(order) for order in epochs_of(dataset, 20, seed=seed)} for seed in range(3)]
    assert len(set.union(*streams)) == 60


def test_crops_change_with_the_epoch_and_the_seed(dataset):
    def corners(seed, start_step):
        [batch] = take(train_batches(dataset, 10, seed, start_step), 1)
        return batch["image"][np.argsort(batch["index"]), 0, 0, 1:]

    first = corners(0, 0)
    assert len({tuple(corner) for corner in first}) > 3
    assert np.any(first != corners(0, 1))
    assert np.any(first != corners(1, 0))


@pytest.mark.parametrize("start_step", [0, 1, 2, 5])
def test_resuming_continues_the_unbroken_stream(dataset, start_step):
    unbroken = take(train_batches(dataset, BATCH, seed=3), 8)
    resumed = take(train_batches(dataset, BATCH, 3, start_step), 8 - start_step)
    assert_equal_streams(resumed, unbroken[start_step:])


def test_starting_late_reads_no_more_than_starting_early(dataset):
    class CountingSource:
        reads = 0

        def __len__(self):
            return NUMBER

        def __getitem__(self, index):
            CountingSource.reads += 1
            return make_images(NUMBER)[index]

    counting = Dataset("counted", ImageSpec(6, 5, 3), train=CountingSource(), test=dataset.test)
    iterator = train_batches(
        counting, BATCH, 0, start_step=10**9, loading=LoadingConfig(prefetch=1)
    )
    np.testing.assert_array_equal(next(iterator)["epoch"], 10**9 * BATCH // NUMBER)
    iterator.close()
    assert CountingSource.reads <= 3 * BATCH


def test_worker_processes_change_nothing(dataset):
    iterator = train_batches(dataset, BATCH, 5, start_step=3, loading=LoadingConfig(num_workers=2))
    with_workers = take(iterator, 7)
    iterator.close()
    assert_equal_streams(with_workers, take(train_batches(dataset, BATCH, seed=5), 10)[3:])


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_read_contiguous_shares_of_the_same_batches(dataset, process_count):
    shares = [
        take(train_batches(dataset, BATCH, 7, 1, process_index=p, process_count=process_count), 6)
        for p in range(process_count)
    ]
    union = [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*shares, strict=True)
    ]
    assert_equal_streams(union, take(train_batches(dataset, BATCH, 7, 1), 6))


@pytest.mark.parametrize("batch_size", [0, NUMBER + 1])
def test_batch_must_fit_the_training_split(dataset, batch_size):
    with pytest.raises(ValueError, match=f"training.batch_size is {batch_size}; allowed: 1 to 10"):
        train_batches(dataset, batch_size, seed=0)


def test_batch_must_divide_among_processes(dataset):
    message = "batch_size is 4; allowed: positive multiples of the number of processes, 3"
    with pytest.raises(ValueError, match=message):
        train_batches(dataset, 4, seed=0, process_count=3)
    with pytest.raises(ValueError, match=message):
        eval_batches(dataset.test, 4, process_count=3)


@pytest.mark.parametrize("process_count", [1, 2])
@pytest.mark.parametrize("number", [1, 8, 10])
def test_evaluation_counts_each_example_exactly_once(number, process_count):
    images = make_images(number)
    shares = [
        list(eval_batches(images, BATCH, process_index, process_count))
        for process_index in range(process_count)
    ]
    for batches in shares:
        assert len(batches) == -(-number // BATCH)
        for batch in batches:
            assert batch["image"].shape == (BATCH // process_count, 6, 5, 3)
            assert batch["index"].dtype == np.int32
            np.testing.assert_array_equal(batch["image"], images[batch["index"]])
    # The processes' shares of a batch, one behind the other, are the global batch.
    seen = np.concatenate(
        [batch["index"] for parts in zip(*shares, strict=True) for batch in parts]
    )
    np.testing.assert_array_equal(seen[:number], np.arange(number))
    assert set(seen[number:]) <= {number - 1}  # what fills up the last batch


def test_evaluation_keeps_the_order():
    batches = eval_batches(make_images(NUMBER), BATCH)
    index = np.concatenate([batch["index"] for batch in batches])
    np.testing.assert_array_equal(index[:NUMBER], np.arange(NUMBER))


def test_evaluation_reads_the_chosen_examples_in_their_order():
    images, chosen = make_images(NUMBER), np.array([7, 2, 2, 9, 0])
    batches = list(eval_batches(images, BATCH, index=chosen))
    index = np.concatenate([batch["index"] for batch in batches])
    np.testing.assert_array_equal(index, [7, 2, 2, 9, 0, 0, 0, 0])
    np.testing.assert_array_equal(np.concatenate([b["image"] for b in batches]), images[index])


def test_put_is_applied_to_every_batch_in_order(dataset):
    put = train_batches(dataset, BATCH, seed=0, put=lambda batch: batch["index"] + 100)
    plain = take(train_batches(dataset, BATCH, seed=0), 5)
    for actual, expected in zip(take(put, 5), plain, strict=True):
        np.testing.assert_array_equal(actual, expected["index"] + 100)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_cannot_be_read_is_an_error_of_the_iterator(dataset, num_workers):
    records = Broken()
    broken = Dataset(
        "broken", ImageSpec(1, 1, 1), train=Decoded(records, np.asarray), test=dataset.test
    )
    batches = train_batches(broken, 3, seed=0, loading=LoadingConfig(num_workers=num_workers))
    # Grain's workers hand on the message, but not the type.
    with pytest.raises(Exception, match="photograph 2 cannot be read: it is torn"):
        take(batches, 2)
    batches.close()


@pytest.mark.parametrize("damage", [b"", bytes([255] * 200)])
def test_torn_file_among_small_ones_is_named(damage):
    files = [stored.encode(image, "png") for image in stored.photos(40, 32, 32)]
    files[30] = files[30][:300] + damage + files[30][300 + len(damage) :] * bool(damage)
    source = Decoded(Described(files), ImageReader())
    with pytest.raises(ValueError, match="file 30 cannot be read"):
        take(eval_batches(source, 40), 1)


def test_small_files_are_read_together_and_only_then():
    class Unreadable(Described):
        def __getitem__(self, index):
            raise AssertionError("it was read by itself")

        def many(self, indices):
            return (list.__getitem__(self, i) for i in indices)

    photos = stored.photos(5, 32, 32)
    files = Unreadable(stored.encode(image, "png") for image in photos)
    images = read_many(Decoded(files, ImageReader()), [3, 0, 3])
    np.testing.assert_array_equal(images, photos[[3, 0, 3]])
    with pytest.raises(ValueError, match="file 3 cannot be read: it was read by itself"):
        read_many(Decoded(files, ImageReader(geometry=lambda image: image)), [3])


class Described(list):
    def describe(self, index):
        return f"file {index}"


class Broken:
    def __len__(self):
        return 3

    def __getitem__(self, index):
        if index == 2:
            raise OSError("it is torn")
        return np.zeros((1, 1, 1), np.uint8)

    def describe(self, index):
        return f"photograph {index}"


@pytest.mark.parametrize(("field", "value"), [("num_workers", -1), ("prefetch", 0)])
def test_impossible_loading_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"loading.{field} is {value}; allowed: "):
        LoadingConfig(**{field: value})


@pytest.mark.parametrize(("seconds", "threads"), [(0.0, 1), (0.002, 3)])
def test_threads_read_what_takes_long(monkeypatch, seconds, threads):
    clock = [0.0]  # the machine's may be late when others use it
    monkeypatch.setattr(loader.time, "perf_counter", lambda: clock[0])

    class Slow:
        def __len__(self):
            return 4

        def __getitem__(self, index):
            clock[0] += seconds
            return np.zeros((2, 2, 1), np.uint8)

    options = _read_options(3, Slow())
    assert (options.num_threads, options.prefetch_buffer_size) == (threads, 3)
