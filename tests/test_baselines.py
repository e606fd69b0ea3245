import collections
import math

import numpy as np
import pytest

from nvae_jax.data.baselines import independent_pixels, pixel_entropy
from nvae_jax.data.sources import Dataset, data_config
from nvae_jax.image_spec import ImageSpec


def test_dimensions_leave_the_border_out():
    assert data_config("digits").image.num_dimensions == 28 * 28
    assert data_config("photos", size=(16, 24)).image.num_dimensions == 16 * 24 * 3


def test_binary_pixels_are_scored_with_the_smoothed_training_means():
    rng = np.random.default_rng(0)
    # 0 and 255 stay what they are when binarised, so the sum can be done by hand. 70 test images
    # do not fill whole evaluation batches. The border would count if it were not left out.
    train = rng.choice([0, 255], (9, 6, 5, 1)).astype(np.uint8)
    test = rng.choice([0, 255], (70, 6, 5, 1)).astype(np.uint8)
    image = ImageSpec(6, 5, 1, border=1, binarize=True)
    dataset = Dataset("binary", image, train=train, test=test)

    nats = 0.0
    for row in range(1, 5):
        for column in range(1, 4):
            on = sum(1 for example in train if example[row, column, 0])
            mean = (on + 1) / (9 + 2)
            for example in test:
                nats -= math.log(mean if example[row, column, 0] else 1 - mean)
    assert independent_pixels(dataset, image) == pytest.approx(nats / 70, rel=1e-6)


def test_grey_training_levels_count_as_probabilities():
    train = np.array([51, 102], np.uint8).reshape(2, 1, 1, 1)  # 1/5 and 2/5
    test = np.array([255, 0, 0], np.uint8).reshape(3, 1, 1, 1)
    image = ImageSpec(1, 1, 1, binarize=True)
    dataset = Dataset("grey", image, train=train, test=test)
    mean = (0.2 + 0.4 + 1) / (2 + 2)
    expected = -(math.log(mean) + 2 * math.log(1 - mean)) / 3
    assert independent_pixels(dataset, image) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("num_bits", [1, 5, 8])
def test_levels_are_scored_with_smoothed_histograms_of_each_channel(num_bits):
    rng = np.random.default_rng(1)
    train = rng.integers(0, 200, (7, 4, 3, 2), np.uint8)
    test = rng.integers(0, 256, (5, 4, 3, 2), np.uint8)
    image = ImageSpec(4, 3, 2, num_bits=num_bits)
    dataset = Dataset("levels", image, train=train, test=test)

    nats, num_levels = 0.0, 2**num_bits
    for channel in range(2):
        counts = collections.Counter(
            v * num_levels // 256 for v in train[..., channel].ravel().tolist()
        )
        total = sum(counts.values()) + num_levels
        for v in test[..., channel].ravel().tolist():
            nats -= math.log((counts[v * num_levels // 256] + 1) / total)
    assert independent_pixels(dataset, image) == pytest.approx(nats / 5, rel=1e-9)


def test_yardsticks_of_the_bundled_datasets():
    # Other splits of the digits give 352.5 to 356.6.
    digits = data_config("digits").open()
    assert independent_pixels(digits, digits.image) == pytest.approx(353.9, abs=0.1)
    photos = data_config("photos", crops_per_epoch=2).open()
    bits = independent_pixels(photos, photos.image) / (math.log(2) * photos.image.num_dimensions)
    assert bits == pytest.approx(7.576, abs=0.001)


@pytest.mark.parametrize("binarize", [True, False])
def test_the_entropy_is_what_independent_pixels_reach_on_their_own_images(binarize):
    image = ImageSpec(6, 5, 2, border=1, binarize=binarize, num_bits=3)
    levels = np.random.default_rng(0).choice([0, 64, 255], (4000, 6, 5, 2)).astype(np.uint8)
    if binarize:
        levels = 255 * (levels // 255)
    dataset = Dataset("own", image, train=levels, test=levels)
    entropy = pixel_entropy(levels, image)
    nats = image.num_dimensions * (math.log(3) - (2 / 3 * math.log(2) if binarize else 0))
    assert entropy == pytest.approx(nats, rel=1e-2)
    # Which are smoothed.
    assert entropy == pytest.approx(independent_pixels(dataset, image), rel=1e-4)
    assert entropy != pytest.approx(pixel_entropy(levels, image, most=50), rel=1e-4)
    assert entropy == pytest.approx(pixel_entropy(levels, image, most=2000), rel=1e-2)
