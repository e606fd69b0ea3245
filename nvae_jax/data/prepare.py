"""Brings a dataset into the form that training reads: download, check, convert, once."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from nvae_jax.config import ConfigError
from nvae_jax.data.download import fetch
from nvae_jax.data.sources import Dataset, make_dataset
from nvae_jax.data.sources.tfds import data_folder, find_builder

_DRIVE = "https://drive.google.com/uc?export=download&id="
_DRIVE_DIRECT = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to come by a dataset.

    Attributes:
      builder: its name in TFDS.
      files: what to fetch: names that the builder has checksums for, or URLs.
      images: how many there are, and
      image_bytes: what one takes at most when it is stored; both to know whether it fits the disk.
      by_hand: what to do where a program cannot fetch it.
    """

    builder: str
    files: tuple[str, ...]
    images: int
    image_bytes: int
    by_hand: str = ""


_MNIST = Recipe(
    "mnist",
    tuple(
        f"{split}-{kind}-ubyte.gz"
        for split in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    ),
    70_000,
    28 * 28,
)

RECIPES = {
    "mnist": _MNIST,
    "stacked_mnist": _MNIST,
    "omniglot": Recipe(
        "omniglot28",
        ("https://github.com/yburda/iwae/raw/master/datasets/OMNIGLOT/chardata.mat",),
        32_415,
        28 * 28,
    ),
    "cifar10": Recipe("cifar10", ("cifar-10-binary.tar.gz",), 60_000, 32 * 32 * 3),
    **{
        f"imagenet{size}": Recipe(
            f"downsampled_imagenet/{size}x{size}",
            (f"train_{size}x{size}.tar", f"valid_{size}x{size}.tar"),
            1_331_148,
            size * size * 3,
            "image-net.org no longer offers the files of van den Oord's downsampling; find them by "
            "their names where data sets are mirrored. They are checked. The archives that "
            "image-net.org offers now are another downsampling, with other likelihoods.",
        )
        for size in (32, 64)
    },
    "celeba64": Recipe(
        "celeb_a",
        (
            "img_align_celeba.zip",
            "list_eval_partition.txt",
            "list_attr_celeba.txt",
            "list_landmarks_align_celeba.txt",
            "identity_CelebA.txt",
        ),
        202_599,
        10_000,
        "Google Drive refuses files that many people fetch; a browser gets them, from "
        "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html or the addresses above.",
    ),
    "celebahq256": Recipe(
        "celebahq256",
        ("https://openaipublic.azureedge.net/glow-demo/data/celeba-tfr.tar",),
        30_000,
        2 * 256 * 256 * 3,  # unpacked, and as PNG
    ),
    "ffhq256": Recipe(
        "ffhq256",
        (),
        70_000,
        2 * 256 * 256 * 3,  # converted, and in the dataset
        "https://github.com/NVlabs/ffhq-dataset says how to fetch images1024x1024 (90 GB).",
    ),
}

_LSUN_NUMBERS = {
    "bedroom": 3_033_042,
    "bridge": 818_687,
    "church_outdoor": 126_227,
    "classroom": 168_103,
    "conference_room": 229_069,
    "dining_room": 657_571,
    "kitchen": 2_212_277,
    "living_room": 1_315_802,
    "restaurant": 626_331,
    "tower": 708_264,
}


def prepare(config: ConfigDict) -> Dataset:
    """Prepares the dataset that `config.data` names, unless it is there, and checks that it reads.

    Downloads go on where they stopped; a dataset appears in its folder only when it is whole.

    Args:
      config: as for training; `config.data.data_dir` is the folder of prepared datasets.

    Returns: the dataset.

    Raises:
      ConfigError: an option that is not allowed, a file that has to be fetched by hand, one that
        is not what it should be, or a full disk. The message says what to do.
      OSError: any other trouble with the disk.
    """
    options = dict(config.data)
    name = options.pop("name")
    try:
        recipe = _recipe(name, options)
        if recipe is not None and not options.get("lmdb"):
            _build(recipe, options.get("data_dir"))
        dataset = make_dataset(name, **options)
        dataset.train[0], dataset.test[0]
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise ConfigError(error.strerror) from error
    print(
        f"{dataset.name} is ready: {len(dataset.train):,} images to train, {len(dataset.test):,} "
        f"to test, {'x'.join(map(str, dataset.image_shape))}"
    )
    return dataset


def _recipe(name: str, options: dict[str, Any]) -> Recipe | None:
    """How to come by a dataset; None where there is nothing to do."""
    if name != "lsun":
        return RECIPES.get(name)
    category = options.get("category")
    if category not in _LSUN_NUMBERS:
        return None  # which make_dataset refuses
    return Recipe(
        f"lsun_scenes/{category}",
        tuple(f"{category}_{split}_lmdb.zip" for split in ("train", "val")),
        _LSUN_NUMBERS[category],
        3 * 20_000,  # in the archive, unpacked, and in the dataset
    )


def _build(recipe: Recipe, data_dir: str | None) -> None:
    """Downloads, checks and converts."""
    builder = find_builder(recipe.builder, data_dir)
    if builder.is_prepared():
        return
    import tensorflow_datasets as tfds

    downloads = Path(data_folder(data_dir)) / "downloads"
    by_hand = downloads / "manual"
    by_hand.mkdir(parents=True, exist_ok=True)
    with _alone(Path(builder.data_path).parent):
        _check_space(recipe, downloads)
        with _explained(recipe, builder, by_hand):
            for url, path, size, sha256 in _files(recipe, builder, by_hand):
                fetch(url.replace(_DRIVE, _DRIVE_DIRECT), path, size, sha256)
            builder.download_and_prepare(
                download_dir=downloads,
                download_config=tfds.download.DownloadConfig(manual_dir=by_hand),
            )
    shutil.rmtree(downloads / f"{recipe.builder}.converted", ignore_errors=True)
    print(f"What was downloaded is in {downloads}, and not needed any more.")


def _files(
    recipe: Recipe, builder: Any, folder: Path
) -> Iterator[tuple[str, Path, int | None, str | None]]:
    """URL, path, size and SHA-256 of what to fetch; of what is unknown, None."""
    known = {info.filename: (url, info) for url, info in (builder.url_infos or {}).items()}
    for file in recipe.files:
        if file in known:
            url, info = known[file]
            yield url, folder / file, info.size, info.checksum
        elif not (folder / file.rpartition("/")[2].removesuffix(".tar")).is_dir():
            yield file, folder / file.rpartition("/")[2], None, None


@contextlib.contextmanager
def _explained(recipe: Recipe, builder: Any, folder: Path) -> Iterator[None]:
    """Says of an error what can be done about it."""
    try:
        yield
    # TFDS raises all kinds of exceptions.
    except Exception as error:
        if _is_full_disk(error):
            raise OSError(
                errno.ENOSPC,
                f"no space left for {recipe.builder} in {folder.parent.parent}; nothing incomplete "
                "is left there but downloads. Make space, and the same command goes on",
            ) from error
        wanted = [f"{url}\n    as {path}" for url, path, _, _ in _files(recipe, builder, folder)]
        manual = getattr(builder, "MANUAL_DOWNLOAD_INSTRUCTIONS", None)
        if not wanted and manual:
            wanted = [f"{' '.join(manual.split())}\n    in {folder}"]
        lines = [
            f"{recipe.builder} could not be prepared: {error}",
            "To fetch by hand what is missing:",
            *(f"  {line}" for line in wanted),
            recipe.by_hand,
            "Then run the same command again.",
        ]
        raise ValueError("\n".join(filter(None, lines))) from error


def _is_full_disk(error: BaseException | None) -> bool:
    """Whether an error comes from a full disk; TFDS wraps errors in others."""
    while error is not None:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return True
        error = error.__cause__ or error.__context__
    return False


def _check_space(recipe: Recipe, folder: Path) -> None:
    """Raises OSError unless the dataset fits the disk."""
    needed, free = recipe.images * recipe.image_bytes, shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"{recipe.builder} needs up to {needed / 1e9:.1f} GB in {folder.parent}, beside what "
            f"is downloaded; {free / 1e9:.1f} GB are free. data.data_dir names another folder",
        )


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds other processes off a dataset's folder, and clears what killed ones left there."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".preparing").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another process is preparing the dataset in {folder}") from error
        for left in folder.glob("incomplete.*"):
            shutil.rmtree(left)
        yield
        os.unlink(lock.name)
