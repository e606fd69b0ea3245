"""What independent pixels achieve: the likelihood that a model of images has to beat."""

from collections.abc import Iterable, Iterator

import jax.numpy as jnp
import numpy as np
from scipy.special import entr

from nvae_jax.data.loader import eval_batches
from nvae_jax.data.sources import Dataset, Source
from nvae_jax.image_spec import ImageSpec

_BATCH_SIZE = 64


def independent_pixels(dataset: Dataset, image: ImageSpec) -> float:
    """Negative log-likelihood of the test split under independent pixels fitted on training data.

    Binary images: a Bernoulli for every pixel, its mean that of the training grey levels. Others:
    a histogram of levels for every channel, the same at all places. Both are fitted to the
    training images (whole ones where training takes random crops) and Laplace-smoothed (one more
    example of each outcome). The test images are those that a model is scored on, without the
    border: binarised once and for all, or reduced to the model's bits.

    Args:
      dataset: the dataset.
      image: the images as the model sees them.

    Returns:
      Nats per image; divide by ln 2 · `image.num_dimensions` for bits per dimension.
    """
    nats = _bernoulli_nats(dataset, image) if image.binarize else _histogram_nats(dataset, image)
    return float(nats / len(dataset.test))


def pixel_entropy(source: Source, image: ImageSpec, most: int = 10_000) -> float:
    """The entropy of independent pixels as `independent_pixels` fits them, without smoothing.

    It is what they reach on the images that they are fitted to.

    Args:
      source: the images.
      image: the images as the model sees them.
      most: how many of them are read, evenly spaced.

    Returns: nats per image.
    """
    index = np.linspace(0, len(source) - 1, min(most, len(source))).round().astype(int)
    images = _inner_levels(source, image, index)
    if image.binarize:
        mean = sum(levels / 255 for levels in images) / len(index)
        return float(entr(mean).sum() + entr(1 - mean).sum())
    counts = _histogram(images, image)
    shares = counts / counts.sum(axis=1, keepdims=True)
    return float((counts.sum(axis=1) * entr(shares).sum(axis=1)).sum() / len(index))


def _bernoulli_nats(dataset: Dataset, image: ImageSpec) -> float:
    """Nats of the whole test split under a Bernoulli for every pixel."""
    total = np.zeros(())
    for levels in _inner_levels(dataset.train, image):
        total = total + levels / 255
    mean = (total + 1) / (len(dataset.train) + 2)
    nats, left = 0.0, len(dataset.test)
    for batch in eval_batches(dataset.test, _BATCH_SIZE):
        pixels = image.evaluation_pixels(jnp.asarray(batch["image"]), jnp.asarray(batch["index"]))
        x = np.asarray(image.without_border(pixels), np.float64)[:left]
        nats -= (x * np.log(mean) + (1 - x) * np.log1p(-mean)).sum()
        left -= len(x)
    return nats


def _histogram_nats(dataset: Dataset, image: ImageSpec) -> float:
    """Nats of the whole test split under a histogram of levels for every channel."""
    sources = dataset.train, dataset.test
    train, test = (_histogram(_inner_levels(source, image), image) for source in sources)
    smoothed = train + 1
    return -np.sum(test * np.log(smoothed / smoothed.sum(axis=1, keepdims=True)))


def _histogram(images: Iterable[np.ndarray], image: ImageSpec) -> np.ndarray:
    """Counts of the levels of images, (C, 2**num_bits)."""
    counts = np.zeros((image.channels, 2**image.num_bits), np.int64)
    for levels in images:
        reduced = image.reduce_bits(levels)
        for channel, count in enumerate(counts):
            count += np.bincount(reduced[..., channel].ravel(), minlength=count.size)
    return counts


def _inner_levels(
    source: Source, image: ImageSpec, index: Iterable[int] | None = None
) -> Iterator[np.ndarray]:
    """The images of a split one by one, for they may differ in size, without the border."""
    index = range(len(source)) if index is None else index
    return (image.without_border(source[int(i)][np.newaxis])[0] for i in index)
