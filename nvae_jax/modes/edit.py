"""The mode `edit`: images changed through their latents."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from nvae_jax.command_line import validate
from nvae_jax.errors import require
from nvae_jax.evaluation.inputs import load_images, with_images
from nvae_jax.evaluation.latents import (
    Space,
    chosen_groups,
    decode_latents,
    encode_images,
    inputs_of,
    top_groups,
)
from nvae_jax.evaluation.sampling import decoded_mean, sampled_pixels
from nvae_jax.evaluation.trained import TrainedModel, group_temperatures, image_keys
from nvae_jax.model import Latents, VAEConfig
from nvae_jax.model.families import make_folded_network
from nvae_jax.modes.results import save_rows


@dataclasses.dataclass(frozen=True)
class EditOptions:
    """Options of `edit`.

    Attributes:
      operation: mix the scales of an image and the next; vary groups; attribute, add a direction;
        inpaint a region
      images: test:3, train:0-7 or image files, separated by commas; the first 8 of the test
        split by default
      space: latents, or noise: the same relative to the groups above
      scales: numbers of scales to vary or to move, from the coarsest, 0; all by default
      groups: numbers of groups to vary or to move, from the top, 0; all by default
      keep: of mix, how many scales from the top to take from the first image, one column each
      variations: of vary and inpaint, one column per draw
      having: of attribute, images that have it
      lacking: of attribute, images that lack it
      strengths: of attribute, how much of the direction to add, one column each
      region: of inpaint, top, left, height and width in pixels
      rounds: of inpaint, how often to draw again
      temperature: of the prior's noise; one number, one per scale or one per group, top-down
      posterior_temperature: multiplies the posterior's noise; 1 draws, 0 gives means
      seed: seeds the draws
      batch_size: images at a time on each device
      name: the name of what is written below edit/; the operation by default
    """

    operation: Literal["mix", "vary", "attribute", "inpaint"]
    images: tuple[str, ...] | None = None
    space: Space = "latents"
    scales: tuple[int, ...] | None = None
    groups: tuple[int, ...] | None = None
    keep: tuple[int, ...] | None = None
    variations: int = 6
    having: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()
    strengths: tuple[float, ...] = (-2.0, -1.0, 0.0, 1.0, 2.0)
    region: tuple[int, ...] | None = None
    rounds: int = 50
    temperature: tuple[float, ...] = (1.0,)
    posterior_temperature: float = 0.0
    seed: int = 0
    batch_size: int = 16
    name: str | None = None

    def __post_init__(self):
        validate(self, "variations", "rounds", "batch_size")
        if self.operation == "attribute":
            for name in ("having", "lacking"):
                require(name, getattr(self, name), len(getattr(self, name)) > 0, "images")
        if self.operation == "inpaint":
            four = self.region is not None and len(self.region) == 4
            require("region", self.region, four, "top, left, height and width in pixels")


def edit(model: TrainedModel, options: EditOptions) -> np.ndarray:
    """Changes images through their latents, and writes one row per image to `edit/<name>.png`.

    The columns are described at `mix`, `vary`, `attribute` and `inpaint`.

    Args:
      model: the model.
      options: which images, and what to do.

    Returns: (rows, columns, h, w, C) in [0, 1].

    Raises:
      ConfigError: there are no such images, groups or pixels.
    """
    operations: dict[str, Callable[[TrainedModel, np.ndarray, EditOptions], np.ndarray]] = {
        "mix": mix,
        "vary": vary,
        "attribute": attribute,
        "inpaint": inpaint,
    }
    options = with_images(model, options, 8)
    x = load_images(model, options.images or (), "images")
    rows = operations[options.operation](model, x, options)
    name = f"edit/{options.name or options.operation}"
    save_rows(model, name, rows, f"{options.operation}: {len(rows):,} rows")
    return rows


def mix(model: TrainedModel, x: np.ndarray, options: EditOptions) -> np.ndarray:
    """Coarse scales of an image, and fine ones of the next.

    Columns: both images, then for every k of `keep` the first one's top k scales with the second
    one's others.
    """
    require("images", options.images, len(x) >= 2, "two images or more")
    several = len(model.config.groups_per_scale) > 1 or model.config.name == "nvae"
    reason = f"vary, attribute or inpaint: a {model.config.name} has no scales to mix"
    require("operation", options.operation, several, reason)
    kept = top_groups(model.config, options.keep, "scales")
    latents = _arrays(_encode(model, x, options), options)
    number, columns = len(x) - 1, len(kept)
    mixed = [
        np.where(
            kept[:, g].reshape(1, columns, *[1] * (z.ndim - 1)), z[:-1, None], z[1:, None]
        ).reshape(number * columns, *z.shape[1:])
        for g, z in enumerate(latents)
    ]
    images = decode_latents(model, mixed, options.space, batch_size=options.batch_size)
    shown = inputs_of(model.config, x)
    return _rows([shown[:-1], shown[1:]], images)


def vary(model: TrainedModel, x: np.ndarray, options: EditOptions) -> np.ndarray:
    """The chosen groups drawn anew from the prior, the others kept.

    Columns: the image, its reconstruction, and the variations.
    """
    latents = _arrays(_encode(model, x, options), options)
    chosen = chosen_groups(model.config, options.scales, options.groups)
    columns = options.variations + 1
    given = np.tile(~chosen, (len(x) * columns, 1))
    given[::columns] = True
    images = decode_latents(
        model,
        [np.repeat(z, columns, axis=0) for z in latents],
        options.space,
        given=given,
        temperatures=group_temperatures(model.config, options.temperature),
        seed=options.seed,
        batch_size=options.batch_size,
    )
    return _rows([inputs_of(model.config, x)], images)


def attribute(model: TrainedModel, x: np.ndarray, options: EditOptions) -> np.ndarray:
    """A direction added to the chosen groups: the difference of two sets' mean latents.

    Columns: the image, and a decoding for every strength; strength 0 is the reconstruction.
    """
    sets = [
        _arrays(_encode(model, load_images(model, getattr(options, name), name), options), options)
        for name in ("having", "lacking")
    ]
    chosen = chosen_groups(model.config, options.scales, options.groups)
    strengths = np.asarray(options.strengths, np.float32)
    moved = []
    for z, having, lacking, moves in zip(
        _arrays(_encode(model, x, options), options), *sets, chosen, strict=True
    ):
        direction = moves * (having.mean(0) - lacking.mean(0))
        steps = strengths.reshape(1, -1, *[1] * direction.ndim) * direction
        moved.append((z[:, None] + steps).reshape(-1, *z.shape[1:]))
    images = decode_latents(model, moved, options.space, batch_size=options.batch_size)
    return _rows([inputs_of(model.config, x)], images)


def inpaint(model: TrainedModel, x: np.ndarray, options: EditOptions) -> np.ndarray:
    """A region filled with what the rest of the image makes likely, approximately.

    In turn, latents are drawn from the posterior of the image as it is, and the region's pixels
    from the decoder: the pseudo-Gibbs chain of Rezende et al. (2014), which starts from grey. Were
    the posterior exact, the chain would end in the model's own distribution of the region given
    the rest. It is not, and the rounds are finite, so what comes out is plausible rather than a
    fair draw; large regions keep more of the start. The last pixels are the decoder's mean.

    Columns: the image, the image without the region, and the variations.
    """
    config = model.config
    reason = "mix, vary or attribute: a chain of draws requires densities of codes and of pixels"
    require("operation", options.operation, model.run.has_bound, reason)
    height, width, _ = config.image.inner_shape
    top, left, rows, columns = options.region or (0, 0, 0, 0)
    inside = 0 <= top < top + rows <= height and 0 <= left < left + columns <= width
    require("region", options.region, inside, f"1 pixel or more within {height} x {width}")
    unknown = np.zeros((1, height, width, 1), bool)
    unknown[:, top : top + rows, left : left + columns] = True
    unknown = config.image.with_border(unknown)
    start = np.where(unknown, np.float32(0.5), x)
    repeated = np.repeat(start, options.variations, axis=0)
    arrays = {"x": repeated, "index": np.arange(len(repeated), dtype=np.uint32)}
    constants = unknown, np.int32(options.rounds), np.uint32(options.seed)
    filler = _filler(config)
    filled = model.map(filler, arrays, options.batch_size, "images filled", constants=constants)
    shown = [inputs_of(config, images) for images in (x, start)]
    return _rows(shown, inputs_of(config, filled))


@functools.cache
def _filler(config: VAEConfig) -> Callable[..., Array]:
    network, image = make_folded_network(config), config.image

    def fill(variables: Any, batch: Any, unknown: Array, rounds: Array, seed: Array) -> Array:
        def draw(number: Array, images: Array) -> Array:
            """Logits, given a posterior draw."""
            keys = image_keys(seed, batch["index"], 2 * number)
            output: Any = network.apply(variables, images, False, keys)
            return output.logits

        def replace(images: Array, pixels: Array) -> Array:
            return jnp.where(unknown, image.with_border(pixels), images)

        def fill_again(number: Array, images: Array) -> Array:
            keys = image_keys(seed, batch["index"], 2 * number + 1)
            return replace(images, sampled_pixels(config, draw(number, images), keys))

        images = lax.fori_loop(0, rounds - 1, fill_again, batch["x"])
        return replace(images, decoded_mean(config, draw(rounds - 1, images)))

    return fill


def _encode(model: TrainedModel, x: np.ndarray, options: EditOptions) -> Latents:
    return encode_images(model, x, options.posterior_temperature, options.seed, options.batch_size)


def _arrays(latents: Latents, options: EditOptions) -> list[np.ndarray]:
    return latents.values if options.space == "latents" else latents.noise


def _rows(first: list[np.ndarray], images: np.ndarray) -> np.ndarray:
    """Columns (N, h, w, C), then the images (N · columns, h, w, C) of each row."""
    images = images.reshape(len(first[0]), -1, *images.shape[1:])
    return np.concatenate([np.stack(first, axis=1), images], axis=1)
