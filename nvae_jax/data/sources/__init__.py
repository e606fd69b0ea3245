"""Datasets as random-access sources of uint8 images.

A source is anything with `len(source)` and `source[i]`, a NumPy array included; `read_many` reads
a batch of it. Whatever changes an image's geometry (cropping, resizing, padding) happens here or in
the loader, on the host; what is pointwise (scaling, bit reduction, binarisation), and flips, on the
device, in `transforms`. A new dataset is a factory that returns a `Dataset`, entered in `DATASETS`.
"""

import inspect
from collections.abc import Callable
from typing import Any

from nvae_jax.data.sources.arrays import numpy_arrays
from nvae_jax.data.sources.base import Dataset, Source, read_many
from nvae_jax.data.sources.folder import image_folder
from nvae_jax.data.sources.paper import (
    celeba64,
    celebahq256,
    cifar10,
    ffhq256,
    imagenet32,
    imagenet64,
    lsun,
    mnist,
    omniglot,
    stacked_mnist,
)
from nvae_jax.data.sources.scikit import digits, photos

__all__ = ["DATASETS", "Dataset", "Source", "make_dataset", "read_many"]

DATASETS: dict[str, Callable[..., Dataset]] = {
    factory.__name__: factory
    for factory in (
        celeba64,
        celebahq256,
        cifar10,
        digits,
        ffhq256,
        image_folder,
        imagenet32,
        imagenet64,
        lsun,
        mnist,
        omniglot,
        numpy_arrays,
        photos,
        stacked_mnist,
    )
}


def make_dataset(name: str, **options: Any) -> Dataset:
    """Builds a dataset by name.

    Args:
      name: a key of `DATASETS`.
      **options: keyword options of that dataset's factory.

    Raises:
      ValueError: an unknown name, an option the dataset does not have or lacks, a value it does not
        allow, or data that is not there or broken. The message names the field as `data.<field>`,
        its value, and what is allowed.
    """
    if name not in DATASETS:
        raise ValueError(f"data.name is {name!r}; allowed: {', '.join(sorted(DATASETS))}")
    factory = DATASETS[name]
    parameters = inspect.signature(factory).parameters
    for option, value in options.items():
        if option not in parameters:
            raise ValueError(
                f"data.{option} is {value!r}, but {name} has no such option; "
                f"allowed: {', '.join(parameters) or 'none'}"
            )
    for option, parameter in parameters.items():
        if parameter.default is parameter.empty and options.get(option) is None:
            raise ValueError(f"data.{option} is missing; {name} needs it")
    return factory(**options)
