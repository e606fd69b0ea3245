"""Datasets as random-access sources of uint8 images.

A source is anything with `len(source)` and `source[i]`, a NumPy array included; `read_many` reads
a batch of it. Whatever changes an image's geometry (cropping, resizing, padding) happens here or in
the loader, on the host; what is pointwise (scaling, bit reduction, binarisation), and flips, on the
device, in `nvae_jax.image_spec`. A new dataset is a subclass of `DataConfig` and a line of
`DATASETS`.
"""

from collections.abc import Mapping
from typing import Any

from nvae_jax.data.sources.arrays import NumpyArrays
from nvae_jax.data.sources.base import DataConfig, Dataset, Source, check_levels, read_many
from nvae_jax.data.sources.characters import Mnist, Omniglot, StackedMnist
from nvae_jax.data.sources.folder import ImageFolder
from nvae_jax.data.sources.photographs import (
    Celeba64,
    Celebahq256,
    Cifar10,
    Ffhq256,
    Imagenet32,
    Imagenet64,
    Lsun,
)
from nvae_jax.data.sources.scikit import Digits, Photos
from nvae_jax.errors import ConfigError, require
from nvae_jax.fields import from_mapping, names_of

__all__ = [
    "DATASETS",
    "DataConfig",
    "Dataset",
    "Source",
    "check_levels",
    "data_config",
    "read_many",
]

DATASETS: dict[str, type[DataConfig]] = {
    dataset.name: dataset
    for dataset in (
        Celeba64,
        Celebahq256,
        Cifar10,
        Digits,
        Ffhq256,
        ImageFolder,
        Imagenet32,
        Imagenet64,
        Lsun,
        Mnist,
        NumpyArrays,
        Omniglot,
        Photos,
        StackedMnist,
    )
}


def data_config(name: str, **options: Any) -> DataConfig:
    """A dataset by its name, to be opened.

    Args:
      name: a key of `DATASETS`.
      **options: fields of that dataset. A field that has no default, and is None, is missing.

    Raises:
      ConfigError: an unknown name, or an option that the dataset does not have, needs, or does not
        allow. The message names the field as `data.<field>`.
    """
    require("data.name", name, name in DATASETS, ", ".join(sorted(DATASETS)))
    dataset = DATASETS[name]
    fields, needed = names_of(dataset), names_of(dataset, without_default=True)
    given: Mapping[str, Any] = {
        option: value
        for option, value in options.items()
        if not (option in needed and value is None)
    }
    for option, value in given.items():
        if option not in fields:
            raise ConfigError(
                f"data.{option} is {value!r}, but {name} has no such option; "
                f"allowed: {', '.join(fields) or 'none'}"
            )
    for option in needed:
        if option not in given:
            raise ConfigError(f"data.{option} is missing; {name} needs it")
    return from_mapping(dataset, given, "data")
