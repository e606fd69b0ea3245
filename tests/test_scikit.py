import types
import zlib

import numpy as np
import pytest

from nvae_jax.data.loader import train_batches
from nvae_jax.data.sources import data_config

HEIGHT, WIDTH, BOUNDARY = 427, 640, 448


@pytest.mark.parametrize("name", ["digits", "photos"])
def test_sources_hold_uint8_images_of_the_declared_shape(name):
    dataset = data_config(name).open()
    assert dataset.name == name
    assert {dataset.test[i].shape for i in range(len(dataset.test))} == {dataset.image.shape}
    train_shapes = {dataset.train[i].shape for i in range(len(dataset.train))}
    if dataset.random_crop:
        assert all(np.all(np.array(s) >= dataset.image.shape) for s in train_shapes)
    else:
        assert train_shapes == {dataset.image.shape}
    assert dataset.train[0].dtype == dataset.test[0].dtype == np.uint8


def test_digits_split_every_digit_into_train_or_test():
    dataset = data_config("digits").open()
    train = {image.tobytes() for image in dataset.train}
    test = {image.tobytes() for image in dataset.test}
    # All 1,797 digits differ from each other, so sets lose nothing.
    assert (len(train), len(test), len(train | test)) == (1500, 297, 1797)


def test_labels_are_those_of_the_digits():
    from sklearn.datasets import load_digits

    dataset, digits = data_config("digits").open(), load_digits()
    for split in ("train", "test"):
        images, labels = getattr(dataset, split), dataset.labels[split]
        assert len(images) == len(labels)
        for label in range(10):
            # The mean image of a label is that of scikit-learn's, at the pixels that both have.
            mean = images[labels == label][:, 2:30, 2:30, 0].mean(0)[::4, ::4] / 255
            others = [
                digits.images[digits.target == other].mean(0)[:7, :7] / 16 for other in range(10)
            ]
            distances = [np.abs(mean[:7, :7] - other).mean() for other in others]
            assert int(np.argmin(distances)) == label


def test_digits_are_bilinear_enlargements_inside_a_border_of_zeros():
    from sklearn.datasets import load_digits

    dataset = data_config("digits").open()
    images = np.concatenate([dataset.train[:5], dataset.test[:5]])[..., 0].astype(float)
    assert dataset.image.border == 2
    inside = images[:, 2:30, 2:30]
    assert inside.sum() == images.sum() > 0

    # Bilinear weights between pixel centres, the outermost pixels extended: (28, 8).
    centres = np.clip((np.arange(28) + 0.5) * 8 / 28 - 0.5, 0, 7)
    weights = np.maximum(0, 1 - abs(centres[:, None] - np.arange(8)))
    expected = weights @ (load_digits().images * 255 / 16) @ weights.T
    for image in inside:
        # Levels are rounded to integers up to three times on the way.
        assert abs(expected - image).max(axis=(1, 2)).min() <= 2


def test_digits_split_is_the_same_every_time():
    first, second = data_config("digits").open(), data_config("digits").open()
    np.testing.assert_array_equal(first.train, second.train)
    np.testing.assert_array_equal(first.test, second.test)
    # Published figures hold for these images, in this order.
    assert (zlib.crc32(first.train.tobytes()), zlib.crc32(first.test.tobytes())) == (
        2783200657,
        3108038825,
    )


@pytest.fixture
def coded_photos(monkeypatch):
    """Two photographs in which a pixel's three levels spell its own number."""
    code = np.arange(2 * HEIGHT * WIDTH).reshape(2, HEIGHT, WIDTH)
    images = np.stack([code >> 16, code >> 8 & 255, code & 255], axis=-1).astype(np.uint8)
    stand_in = types.SimpleNamespace(images=list(images))
    monkeypatch.setattr("sklearn.datasets.load_sample_images", lambda: stand_in)


def coordinates(images):
    """Photograph, row and column of every pixel of coded images, each (N, h, w)."""
    code = images.astype(np.int64) @ [1 << 16, 1 << 8, 1]
    photo, row, column = np.unravel_index(code, (2, HEIGHT, WIDTH))
    # Every image is one rectangle of one photograph.
    assert np.all(photo == photo[:, :1, :1])
    assert np.all(row - row[:, :1, :1] == np.arange(images.shape[1])[:, None])
    assert np.all(column - column[:, :1, :1] == np.arange(images.shape[2]))
    return photo, row, column


@pytest.mark.usefixtures("coded_photos")
@pytest.mark.parametrize(("size", "height", "width"), [(32, 32, 32), ((20, 48), 20, 48)])
def test_photos_train_on_random_crops_of_the_left_and_test_on_a_grid_of_the_right(
    size, height, width
):
    dataset = data_config("photos", size=size, crops_per_epoch=100).open()
    assert dataset.image.shape == (height, width, 3)

    photo, row, column = coordinates(dataset.test)
    assert len(dataset.test) == 2 * (HEIGHT // height) * ((WIDTH - BOUNDARY) // width)
    assert column.min() == BOUNDARY
    assert len({*zip(photo.flat, row.flat, column.flat, strict=True)}) == photo.size

    batches = train_batches(dataset, batch_size=100, seed=0)
    train = np.concatenate([next(batches)["image"] for _ in range(20)])
    assert train.shape[1:] == dataset.image.shape
    photo, row, column = coordinates(train)
    assert column.max() < BOUNDARY
    # Corners are uniform: 2,000 of them come near all four sides, in both photographs.
    for number in (0, 1):
        corners = photo[:, 0, 0] == number
        assert corners.sum() == 1000
        for corner, last in [(row, HEIGHT - height), (column, BOUNDARY - width)]:
            places = corner[corners, 0, 0]
            assert places.min() < 0.02 * last
            assert places.max() > 0.98 * last
            assert abs(places.mean() - last / 2) < 5 * last / np.sqrt(12 * 1000)


def test_photos_allow_crops_of_the_whole_test_region():
    dataset = data_config("photos", size=(427, 192)).open()
    assert len(dataset.test) == 2
    assert dataset.image.shape == (427, 192, 3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("photos", {"size": 0}, "data.size is 0; allowed: a positive int or"),
        ("photos", {"size": 193}, "data.size is 193; allowed: at most 427 high and 192 wide"),
        ("photos", {"size": (428, 32)}, r"data.size is \(428, 32\)"),
        ("photos", {"size": (32,)}, r"data.size is \(32,\)"),
        ("photos", {"size": 32.5}, "data.size is 32.5"),
        ("photos", {"crops_per_epoch": 0}, "data.crops_per_epoch is 0"),
    ],
)
def test_wrong_options_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        data_config(name, **options).open()
