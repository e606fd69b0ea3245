"""Into latents and back: the modes `encode`, `decode` and `reconstruct`."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Literal

import numpy as np
from jax.sharding import Mesh

from nvae_jax.evaluation.files import npz, png
from nvae_jax.evaluation.inputs import load_images
from nvae_jax.evaluation.latents import (
    Space,
    chosen_groups,
    decode_latents,
    encode_images,
    inputs_of,
    read_latents,
    top_groups,
)
from nvae_jax.evaluation.trained import group_temperatures, open_run
from nvae_jax.options import validate


@dataclasses.dataclass(frozen=True)
class EncodeOptions:
    """Options of `encode`.

    Attributes:
      images: test:3, train:0-7 or files, by commas
      posterior_temperature: multiplies the posterior's noise; 1 draws, 0 gives means
      seed: of the draws
      batch_size: images at a time on each device
      name: of what is written below encode/
    """

    images: tuple[str, ...] = ("test:0-15",)
    posterior_temperature: float = 1.0
    seed: int = 0
    batch_size: int = 16
    name: str = "latents"

    def __post_init__(self):
        validate(self, "batch_size")


def encode(
    path: str | os.PathLike[str],
    options: EncodeOptions = EncodeOptions(),
    mesh: Mesh | None = None,
) -> str:
    """Writes the latents of images to `encode/<name>.npz` in the work directory.

    The file has `values_00`, `values_01`, … and `noise_00`, …, each (N, h, w, Z), a group,
    top-down: what `decode` takes, and the same as standard-normal draws of the prior. And
    `provenance`, a JSON object.

    Args:
      path: the work directory.
      options: which images, and means or draws.
      mesh: the devices; all there are, by default.

    Returns: the path of the file.

    Raises:
      FileNotFoundError: there is no such work directory, checkpoint or image.
      ValueError: there are no such images.
    """
    model = open_run(path, mesh)
    x = load_images(model, options.images, "images")
    latents = encode_images(
        model, x, options.posterior_temperature, options.seed, options.batch_size
    )
    arrays = {
        f"{name}_{g:02d}": group
        for name in ("values", "noise")
        for g, group in enumerate(getattr(latents, name))
    }
    provenance = json.dumps(dataclasses.asdict(options) | {"step": model.step})
    content = npz(provenance=np.asarray(provenance), **arrays)
    target = model.workdir.write(f"encode/{options.name}.npz", content)
    model.workdir.log(f"latents of {len(x):,} images: {target}")
    return str(target)


@dataclasses.dataclass(frozen=True)
class DecodeOptions:
    """Options of `decode`.

    Attributes:
      latents: an .npz file, as encode writes it
      space: latents, or noise: the same relative to the groups above
      scales: numbers of scales to take from the file, from the coarsest, 0; all by default
      groups: numbers of groups to take from the file, from the top, 0; all by default
      temperature: of the prior, which the rest is drawn from; one number, one a scale or a group
      seed: of these draws
      columns: of the grid
      batch_size: images at a time on each device
      name: of what is written below decode/
    """

    latents: str
    space: Space = "latents"
    scales: tuple[int, ...] | None = None
    groups: tuple[int, ...] | None = None
    temperature: tuple[float, ...] = (1.0,)
    seed: int = 0
    columns: int | None = None
    batch_size: int = 16
    name: str = "images"

    def __post_init__(self):
        validate(self, "batch_size", "columns")


def decode(
    path: str | os.PathLike[str], options: DecodeOptions, mesh: Mesh | None = None
) -> np.ndarray:
    """Decodes a file of latents to `decode/<name>.png` in the work directory.

    Args:
      path: the work directory.
      options: which latents, and what of them.
      mesh: the devices; all there are, by default.

    Returns: decoder means (N, h, w, C) in [0, 1].

    Raises:
      FileNotFoundError: there is no such work directory, checkpoint or file.
      ValueError: the latents are another model's.
    """
    model = open_run(path, mesh)
    latents = read_latents(model.config, options.latents)
    arrays = latents.values if options.space == "latents" else latents.noise
    chosen = chosen_groups(model.config, options.scales, options.groups)
    images = decode_latents(
        model,
        arrays,
        options.space,
        given=np.tile(chosen, (len(arrays[0]), 1)),
        temperatures=group_temperatures(model.config, options.temperature),
        seed=options.seed,
        batch_size=options.batch_size,
    )
    target = model.workdir.write(f"decode/{options.name}.png", png(images, options.columns))
    model.workdir.log(f"{len(images):,} images: {target}")
    return images


@dataclasses.dataclass(frozen=True)
class ReconstructOptions:
    """Options of `reconstruct`.

    Attributes:
      images: test:3, train:0-7 or files, by commas
      keep: how many groups or scales, from the top, to take from the image, a column each; the
        rest is drawn from the prior
      unit: of keep, scales or groups
      posterior_temperature: multiplies the posterior's noise; 1 draws, 0 gives means
      temperature: of the prior; one number, one a scale or one a group, top-down
      seed: of the draws
      batch_size: images at a time on each device
      name: of what is written below reconstruct/
    """

    images: tuple[str, ...] = ("test:0-7",)
    keep: tuple[int, ...] | None = None
    unit: Literal["scales", "groups"] = "scales"
    posterior_temperature: float = 1.0
    temperature: tuple[float, ...] = (1.0,)
    seed: int = 0
    batch_size: int = 16
    name: str = "reconstructions"

    def __post_init__(self):
        validate(self, "batch_size")


def reconstruct(
    path: str | os.PathLike[str],
    options: ReconstructOptions = ReconstructOptions(),
    mesh: Mesh | None = None,
) -> np.ndarray:
    """What of an image is in the top k groups or scales: `reconstruct/<name>.png`.

    A row an image: the image, then for every k a decoding of its top k groups, the rest drawn from
    the prior, with the same draws in all columns.

    Args:
      path: the work directory.
      options: which images, and which k.
      mesh: the devices; all there are, by default.

    Returns: (N, 1 + number of k, h, w, C) in [0, 1].

    Raises:
      FileNotFoundError: there is no such work directory, checkpoint or image.
      ValueError: there are no such images or groups.
    """
    model = open_run(path, mesh)
    x = load_images(model, options.images, "images")
    kept = top_groups(model.config, options.keep, options.unit)
    latents = encode_images(
        model, x, options.posterior_temperature, options.seed, options.batch_size
    )
    columns = len(kept)
    decoded = decode_latents(
        model,
        [np.repeat(z, columns, axis=0) for z in latents.values],
        given=np.tile(kept, (len(x), 1)),
        temperatures=group_temperatures(model.config, options.temperature),
        seed=options.seed,
        index=np.repeat(np.arange(len(x)), columns),
        batch_size=options.batch_size,
    )
    decoded = decoded.reshape(len(x), columns, *decoded.shape[1:])
    rows = np.concatenate([inputs_of(model.config, x)[:, None], decoded], axis=1)
    content = png(rows.reshape(-1, *rows.shape[2:]), columns + 1)
    target = model.workdir.write(f"reconstruct/{options.name}.png", content)
    model.workdir.log(f"{len(x):,} images, each beside {columns} reconstructions: {target}")
    return rows
