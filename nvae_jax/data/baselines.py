"""What independent pixels achieve: the likelihood that a model of an image has to beat."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from nvae_jax.data.loader import eval_batches
from nvae_jax.data.sources import Dataset, Source
from nvae_jax.data.transforms import prepare_eval, reduce_bits


def num_dimensions(dataset: Dataset) -> int:
    """Dimensions of an image that the likelihood counts: H * W * C without the border."""
    height, width, channels = dataset.image_shape
    return (height - 2 * dataset.border) * (width - 2 * dataset.border) * channels


def independent_pixels(dataset: Dataset, num_bits: int) -> float:
    """Negative log-likelihood of the test split under independent pixels fitted on training data.

    Binary images: a Bernoulli for every pixel, its mean that of the training grey levels. Others:
    a histogram of levels for every channel, the same at all places. Both are fitted to the
    training images (whole ones where training takes random crops) and Laplace-smoothed (one more
    example of each outcome). The test images are those that a model is scored on, without the
    border: binarised once and for all, or reduced to `num_bits`.

    Args:
      dataset: the dataset.
      num_bits: bits per channel of images that are not binarised, from 1 to 8.

    Returns:
      Nats per image; divide by ln 2 * `num_dimensions(dataset)` for bits per dimension.

    Raises:
      ValueError: `num_bits` is not from 1 to 8.
    """
    nats = _bernoulli_nats(dataset) if dataset.binarize else _histogram_nats(dataset, num_bits)
    return float(nats / len(dataset.test))


def _bernoulli_nats(dataset: Dataset) -> float:
    """Nats of the whole test split under a Bernoulli for every pixel."""
    total = np.zeros(())
    for image in _images(dataset.train):
        total = total + _inside(dataset, image) / 255
    mean = (total + 1) / (len(dataset.train) + 2)
    nats = 0.0
    for batch in eval_batches(dataset.test, batch_size=64):
        levels, index = jnp.asarray(batch["image"]), jnp.asarray(batch["index"])
        pixels = prepare_eval(levels, index, binarize=True, num_bits=8)
        x = _inside(dataset, np.asarray(pixels, np.float64))
        per_image = -(x * np.log(mean) + (1 - x) * np.log1p(-mean)).sum(axis=(1, 2, 3))
        nats += batch["mask"] @ per_image
    return nats


def _histogram_nats(dataset: Dataset, num_bits: int) -> float:
    """Nats of the whole test split under a histogram of levels for every channel."""
    train = _histogram(dataset, dataset.train, num_bits)
    test = _histogram(dataset, dataset.test, num_bits)
    smoothed = train + 1
    return -np.sum(test * np.log(smoothed / smoothed.sum(axis=1, keepdims=True)))


def _histogram(dataset: Dataset, source: Source, num_bits: int) -> np.ndarray:
    """Counts of the levels of a split, (C, 2**num_bits)."""
    counts = np.zeros((dataset.image_shape[2], 2**num_bits), np.int64)
    for image in _images(source):
        levels = reduce_bits(_inside(dataset, image), num_bits)
        for channel, count in enumerate(counts):
            count += np.bincount(levels[..., channel].ravel(), minlength=count.size)
    return counts


def _images(source: Source) -> Iterator[np.ndarray]:
    return (source[i] for i in range(len(source)))


def _inside(dataset: Dataset, images: np.ndarray) -> np.ndarray:
    """Images (..., H, W, C) without their border."""
    height, width = images.shape[-3:-1]
    border = dataset.border
    return images[..., border : height - border, border : width - border, :]
