"""The latents of images, and the images of latents."""

from __future__ import annotations

import functools
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax import Array

from nvae_jax.data.archives import read_npz
from nvae_jax.errors import reading, require
from nvae_jax.evaluation.sampling import decoded_mean
from nvae_jax.evaluation.trained import (
    TrainedModel,
    image_keys,
    image_noise,
    scales_of_groups,
)
from nvae_jax.model import Latents, VAEConfig
from nvae_jax.model.families import make_folded_network

Space = Literal["noise", "latents"]


def encode_images(
    model: TrainedModel,
    x: np.ndarray,
    posterior_temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 16,
) -> Latents:
    """Latents of images, as NumPy arrays.

    Args:
      model: the model.
      x: (N, H, W, C) in [0, 1], as `inputs.load_images` returns them.
      posterior_temperature: multiplies the posterior's noise: 1 draws, 0 gives means. A model that
        was trained without a posterior (see `Objective`) has means only.
      seed: seeds the draws; image i depends on the seed and on i alone.
      batch_size: images at a time on each device.
    """
    arrays = {"x": x, "index": np.arange(len(x), dtype=np.uint32)}
    scale = posterior_temperature if model.run.objective.has_posterior else 0.0
    constants = np.uint32(seed), np.float32(scale)
    return model.map(
        make_encoder(model.config), arrays, batch_size, "images encoded", constants=constants
    )


@functools.cache
def make_encoder(config: VAEConfig) -> Callable[..., Latents]:
    """A function `(variables, batch, seed, posterior temperature) → Latents`, for `jit`.

    The variables are those that `fold` returns; the batch has `x` (B, H, W, C) and `index` (B,).
    See `encode_images`.
    """
    network = make_folded_network(config)

    def encode(variables: Any, batch: Any, seed: Array, scale: Array) -> Any:
        noise = image_noise(config, image_keys(seed, batch["index"]), scale)
        return network.apply(variables, batch["x"], noise, method="encode")

    return encode


def decode_latents(
    model: TrainedModel,
    latents: Sequence[np.ndarray],
    space: Space = "latents",
    given: np.ndarray | None = None,
    temperatures: np.ndarray | float = 1.0,
    seed: int = 0,
    index: np.ndarray | None = None,
    batch_size: int = 16,
) -> np.ndarray:
    """Decodes latents; groups that are not given are drawn from the prior.

    Args:
      model: the model.
      latents: (N, h, w, Z) per group, top-down.
      space: what they are, `Latents.values` or `Latents.noise`. A group's noise means the same
        relative to the groups above it, whatever these are.
      given: (N, groups) bool; all, by default.
      temperatures: one number or (groups,), which multiply the prior's sigma.
      seed: seeds the draws from the prior.
      index: (N,) numbers of the draws; equal numbers get equal draws.
      batch_size: images at a time on each device.

    Returns: decoder means (N, h, w, C) in [0, 1], without the border.
    """
    number, groups = len(latents[0]), model.config.total_groups
    arrays = {
        "latents": list(latents),
        "given": np.ones((number, groups), bool) if given is None else given,
        "index": np.asarray(np.arange(number) if index is None else index, np.uint32),
    }
    scales = np.broadcast_to(np.asarray(temperatures, np.float32), groups)
    constants = np.uint32(seed), scales
    decoder = make_decoder(model.config, space)
    return model.map(decoder, arrays, batch_size, "images decoded", constants=constants)


def decode_tops(
    model: TrainedModel,
    latents: Latents,
    kept: np.ndarray,
    temperatures: np.ndarray,
    seed: int,
    batch_size: int,
) -> np.ndarray:
    """Images from the top groups of their latents, the rest drawn from the prior.

    Args:
      model: the model.
      latents: of N images.
      kept: (K, groups) bool, see `top_groups`.
      temperatures: (groups,), which multiply the prior's sigma.
      seed: of the draws from the prior, which an image has in common for all K.
      batch_size: images at a time on each device.

    Returns: decoder means (N, K, h, w, C) in [0, 1].
    """
    number, columns = len(latents.values[0]), len(kept)
    images = decode_latents(
        model,
        [np.repeat(z, columns, axis=0) for z in latents.values],
        given=np.tile(kept, (number, 1)),
        temperatures=temperatures,
        seed=seed,
        index=np.repeat(np.arange(number), columns),
        batch_size=batch_size,
    )
    return images.reshape(number, columns, *images.shape[1:])


@functools.cache
def make_decoder(config: VAEConfig, space: Space) -> Callable[..., Array]:
    """A function `(variables, batch, seed, temperatures) → images`, for `jit`.

    The variables are those that `fold` returns; the batch has `latents`, `given` and `index` as in
    `decode_latents`.
    """
    network = make_folded_network(config)

    def decode(variables: Any, batch: Any, seed: Array, temperatures: Array) -> Array:
        values, given = batch["latents"], batch["given"]
        keys = image_keys(seed, batch["index"], draw=1)  # 0 is the posterior's, in `encode_images`
        if space == "latents":
            logits: Any = network.apply(
                variables, values, given, temperatures, keys, method="decode"
            )
        else:
            # A drawn value is stored with its temperature; a given value has its own.
            drawn = image_noise(config, keys)
            noise = [
                jnp.where(given[:, g, None, None, None], values[g], temperatures[g] * drawn[g])
                for g in range(config.total_groups)
            ]
            logits = network.apply(variables, len(keys), 1.0, noise, method="sample_prior")
        return decoded_mean(config, logits)

    return decode


def prior_noise(
    config: VAEConfig, number: int, temperatures: np.ndarray, seed: int
) -> list[np.ndarray]:
    """The noise of samples 0 to `number` - 1 of a seed, (N, h, w, Z) per group, top-down.

    Args:
      config: the model's configuration.
      number: of samples.
      temperatures: (groups,), top-down, which multiply the noise.
      seed: a sample's noise depends on the seed and on the sample's number alone.
    """
    noise = image_noise(config, image_keys(seed, np.arange(number, dtype=np.uint32)))
    return [np.asarray(t * z) for t, z in zip(temperatures, noise, strict=True)]


def chosen_groups(
    config: VAEConfig, scales: Sequence[int] | None, groups: Sequence[int] | None
) -> np.ndarray:
    """Which groups are meant by numbers of scales, of groups, or both; by neither, all.

    Numbers count from the top: scale 0 is the coarsest.

    Returns: (groups,) bool.

    Raises:
      ConfigError: there is no such scale or group.
    """
    scale_of = scales_of_groups(config)
    for name, numbers in (("scales", scales), ("groups", groups)):
        require_several(config, name, numbers)
    if scales is None and groups is None:
        return np.ones(len(scale_of), bool)
    last = {"scales": scale_of[-1], "groups": len(scale_of) - 1}
    for name, numbers in (("scales", scales or ()), ("groups", groups or ())):
        inside = all(0 <= number <= last[name] for number in numbers)
        require(name, numbers, inside, f"0 to {last[name]}")
    return np.isin(scale_of, scales or ()) | np.isin(np.arange(len(scale_of)), groups or ())


def top_groups(
    config: VAEConfig, keep: Sequence[int] | None, unit: str, field: str = "keep"
) -> np.ndarray:
    """The first k groups or scales, for every k of `keep`; by default from none to all scales.

    Returns: (len(keep), groups) bool.

    Raises:
      ConfigError: a k is not from 0 to their number.
    """
    scale_of = scales_of_groups(config)
    place = scale_of if unit == "scales" else np.arange(len(scale_of))
    number = int(place[-1]) + 1
    keep = tuple(range(number + 1)) if keep is None else tuple(keep)
    require(field, keep, all(0 <= k <= number for k in keep), f"0 to {number} {unit}")
    return place < np.asarray(keep)[:, None]


def require_several(
    config: VAEConfig, field: str, value: Sequence[int] | None, unit: str | None = None
) -> None:
    """Checks that an option that chooses scales or groups of latents has something to choose from.

    An NVAE of one group is the smallest hierarchy, and may be asked for its only one.

    Args:
      config: of the model.
      field: the option.
      value: of it; None: it is not given.
      unit: scales or groups; by default the option's name.

    Raises:
      ConfigError: the model has a single one.
    """
    unit = unit or field
    number = config.total_groups if unit == "groups" else len(config.groups_per_scale)
    fits = value is None or number > 1 or config.name == "nvae"
    reason = f"none: a {config.name} has no {unit} from coarse to fine"
    require(field, value, fits, reason)


def check_latents(config: VAEConfig, groups: Sequence[np.ndarray | None], where: str) -> None:
    """Checks that arrays (N, h, w, Z), one per group, top-down, are a model's latents.

    Raises:
      ConfigError: they are another model's, no finite numbers, or of different numbers of images.
    """
    shapes = [None if group is None else group.shape[1:] for group in groups]
    wanted = list(config.latent_shapes)
    allowed = f"{wanted}, as this model has them"
    require(f"the shapes of the latents in {where}", shapes, shapes == wanted, allowed)
    given = [np.asarray(group) for group in groups]
    kinds = sorted({str(array.dtype) for array in given})
    real = all(array.dtype.kind == "f" and np.isfinite(array).all() for array in given)
    require(f"the latents in {where}", kinds, real, "finite floating-point numbers")
    counts = sorted({len(array) for array in given})
    same = len(counts) == 1 and counts[0] > 0
    require(f"the number of images in {where}", counts, same, "one number above 0")


def read_latents(config: VAEConfig, path: str | os.PathLike[str]) -> Latents:
    """The latents in a file that the mode `encode` has written.

    Raises:
      ConfigError: the file is missing or broken, or its latents are another model's.
    """
    allowed = "an .npz file that the mode encode has written"
    broken = (ValueError, TypeError, EOFError, KeyError, AttributeError, zipfile.BadZipFile)
    arrays: Mapping[str, np.ndarray]
    with reading("latents", path, allowed, *broken), open(path, "rb") as stream:
        arrays = dict(read_npz(stream))
    groups = range(config.total_groups)
    found: dict[str, list[Any]] = {
        kind: [arrays.get(f"{kind}_{g:02d}") for g in groups] for kind in ("values", "noise")
    }
    for values in found.values():
        check_latents(config, values, repr(os.fspath(path)))
    return Latents(**found)


def inputs_of(config: VAEConfig, x: np.ndarray) -> np.ndarray:
    """Images as they are shown, without the border."""
    return config.image.without_border(np.asarray(x))
