"""Brings a dataset into the form that training reads: download, check, convert, once."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nvae_jax.data.download import fetch
from nvae_jax.data.sources import DataConfig, Dataset
from nvae_jax.data.sources.base import Recipe
from nvae_jax.data.sources.tfds import data_folder, find_builder
from nvae_jax.errors import ConfigError, reason, writing

_DRIVE = "https://drive.google.com/uc?export=download&id="
_DRIVE_DIRECT = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="


def prepare(data: DataConfig) -> Dataset:
    """Prepares a dataset, unless it is prepared already, and checks that it reads.

    Downloads go on where they stopped; a dataset appears in its folder only when it is whole.

    Args:
      data: which dataset; its option `data_dir` is the folder of prepared datasets.

    Returns: the dataset.

    Raises:
      ConfigError: a file has to be fetched by hand or is not what it should be, the disk is full,
        or the folder cannot be written. What to do is printed, or said by the message.
    """
    if data.recipe is not None:
        _build(data.recipe, getattr(data, "data_dir", None))
    dataset = data.open()
    dataset.train[0], dataset.test[0]
    print(
        f"{dataset.name} is ready: {len(dataset.train):,} images to train, {len(dataset.test):,} "
        f"to test, {'x'.join(map(str, dataset.image.shape))}"
    )
    return dataset


def _build(recipe: Recipe, data_dir: str | None) -> None:
    """Downloads, checks and converts."""
    builder = find_builder(recipe.builder, data_dir)
    if builder.is_prepared():
        return
    import tensorflow_datasets as tfds

    downloads = Path(data_folder(data_dir)) / "downloads"
    by_hand = downloads / "manual"
    with writing(by_hand):
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
    """Turns an error into a refusal, and prints what can be done about it."""
    try:
        yield
    # TFDS raises all kinds of exceptions.
    except Exception as error:
        if _is_full_disk(error):
            raise ConfigError(
                f"no space left for {recipe.builder} in {folder.parent.parent}; nothing incomplete "
                "is left there but downloads. Make space, and the same command goes on"
            ) from error
        wanted = [f"{url}\n    as {path}" for url, path, _, _ in _files(recipe, builder, folder)]
        manual = getattr(builder, "MANUAL_DOWNLOAD_INSTRUCTIONS", None)
        if not wanted and manual:
            wanted = [f"{' '.join(manual.split())}\n    in {folder}"]
        print("To fetch by hand what is missing:", *wanted, sep="\n  ")
        print(*filter(None, [recipe.by_hand]), "Then run the same command again.", sep="\n")
        raise ConfigError(
            f"{recipe.builder} could not be prepared in {folder.parent.parent}: {reason(error)}; "
            "what to fetch by hand is listed above"
        ) from error


def _is_full_disk(error: BaseException | None) -> bool:
    """Whether an error comes from a full disk; TFDS wraps errors in others."""
    while error is not None:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return True
        error = error.__cause__ or error.__context__
    return False


def _check_space(recipe: Recipe, folder: Path) -> None:
    """Raises a ConfigError unless the dataset fits the disk."""
    needed, free = recipe.images * recipe.image_bytes, shutil.disk_usage(folder).free
    if free < needed:
        raise ConfigError(
            f"{recipe.builder} needs up to {needed / 1e9:.1f} GB in {folder.parent}, beside what "
            f"is downloaded; {free / 1e9:.1f} GB are free. data.data_dir names another folder"
        )


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds other processes off a dataset's folder, and clears what killed ones left there."""
    import fcntl

    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".preparing").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"another process is preparing the dataset in {folder}") from error
        for left in folder.glob("incomplete.*"):
            shutil.rmtree(left)
        yield
        os.unlink(lock.name)
