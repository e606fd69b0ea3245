"""The mode `neighbors`: whether samples are copies of training images."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from nvae_jax.command_line import validate
from nvae_jax.data.sources import Source
from nvae_jax.errors import require
from nvae_jax.evaluation.batches import on_pixels, over_split
from nvae_jax.evaluation.inputs import fixed_split, read_pixels
from nvae_jax.evaluation.sampling import sample_batches
from nvae_jax.evaluation.trained import TrainedModel, group_temperatures
from nvae_jax.image_spec import ImageSpec
from nvae_jax.modes.results import provenance, save_report, save_rows

MEASURES = ("pixels", "downsampled")
_COARSE = 8  # pixels on a side that images are scaled down to


@dataclasses.dataclass(frozen=True)
class NeighborsOptions:
    """Options of `neighbors`.

    Attributes:
      num_images: how many samples, and images of the test split beside them
      nearest: how many training images to find for each; 5 by default, or all if they are fewer
      temperature: of the prior's noise; one number, one per scale or one per group, top-down
      seed: seeds the samples
      batch_size: images at a time on each device
      name: the name of what is written below neighbors/
    """

    num_images: int = 16
    nearest: int | None = None
    temperature: tuple[float, ...] = (1.0,)
    seed: int = 0
    batch_size: int = 16
    name: str = "neighbors"

    def __post_init__(self):
        validate(self, "num_images", "nearest", "batch_size")


def neighbors(
    model: TrainedModel, options: NeighborsOptions = NeighborsOptions()
) -> dict[str, Any]:
    """The nearest training images of samples, as a picture and a report (NVAE, appendix).

    Distances are root mean squares over pixels in [0, 1], as they are and scaled down to 8 x 8.
    Where training mirrors images, mirrored ones count too. Test images are searched for in the same
    way: a model that copies has samples that are nearer to training images than test images are.

    Writes `neighbors/<name>.png`, one row per sample: the sample, its nearest training images by
    pixels, then those by downsampled pixels; and `neighbors/<name>.json`.

    Args:
      model: the model.
      options: how many samples, and how to draw them.

    Returns: the report, an object with a JSON form.

    Raises:
      ConfigError: the data is missing, or more neighbours are asked for than there are training
        images.
    """
    train, test = fixed_split(model.dataset, "train"), fixed_split(model.dataset, "test")
    nearest = min(5, len(train)) if options.nearest is None else options.nearest
    require("nearest", nearest, nearest <= len(train), f"at most {len(train)}")
    options = dataclasses.replace(options, nearest=nearest)
    temperatures = group_temperatures(model.config, options.temperature)
    number = options.num_images
    batches = sample_batches(model, number, temperatures, options.seed, options.batch_size)
    samples = np.concatenate([images for _, images in batches])
    tested = _pixels(model, test, np.arange(min(number, len(test))))
    found = find_nearest(model, np.concatenate([samples, tested]), train, nearest)

    report: dict[str, Any] = provenance(model, options)
    columns = [samples[:, None]]
    for measure in MEASURES:
        index, distance = found[measure]
        report[measure] = {
            "samples": {"index": index[:number].tolist(), "distance": distance[:number].tolist()},
            "mean_nearest_of_samples": float(distance[:number, 0].mean()),
            "mean_nearest_of_test_images": float(distance[number:, 0].mean()),
        }
        model.workdir.log(
            f"mean distance of the nearest training image by {measure}: "
            f"{report[measure]['mean_nearest_of_samples']:.4f} of samples, "
            f"{report[measure]['mean_nearest_of_test_images']:.4f} of test images"
        )
        shown = _pixels(model, train, index[:number].reshape(-1))
        columns.append(shown.reshape(number, -1, *shown.shape[1:]))
    rows = np.concatenate(columns, axis=1)
    name = f"neighbors/{options.name}"
    save_report(model, name, report)
    save_rows(model, name, rows, f"{number} samples")
    return report


def find_nearest(
    model: TrainedModel, queries: np.ndarray, source: Source, nearest: int, batch_size: int = 256
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The nearest images of a source, which is read once, a block at a time.

    Args:
      model: whose devices are used, and whose data the source is.
      queries: (Q, h, w, C) in [0, 1], without the border.
      source: to search, as `fixed_split` returns it.
      nearest: how many to find for each.
      batch_size: of the blocks, on each device.

    Returns: for each of `MEASURES` numbers of images and their distances, both (Q, nearest), the
      nearest first; see `neighbors` for the distances.
    """
    mirrored, image = model.dataset.flip, _as_decoded(model)
    targets = _measured(jnp.concatenate([queries, queries[:, :, ::-1]]) if mirrored else queries)

    def distances(targets: Any, x: Array, index: Array) -> dict[str, Array]:
        del index
        images = _measured(image.without_border(x))

        def squared(x: Array, q: Array) -> Array:
            product = jnp.matmul(x, q.T, precision=jax.lax.Precision.HIGHEST)
            d = jnp.square(x).sum(1)[:, None] - 2 * product + jnp.square(q).sum(1)
            return d.reshape(len(x), -1, len(queries)).min(1)

        return {measure: squared(images[measure], targets[measure]) for measure in MEASURES}

    compiled = model.compile(on_pixels(image, distances))
    best = {measure: np.zeros((2, len(queries), 0)) for measure in MEASURES}
    blocks = over_split(
        model.mesh,
        lambda _, batch: compiled(targets, batch),
        source,
        np.arange(len(source)),
        batch_size * model.mesh.size,
        model.progress("training images searched"),
    )
    for first, block in blocks:
        for measure, d in block.items():
            number = np.broadcast_to(first + np.arange(len(d)), d.T.shape)
            both = np.concatenate([best[measure], np.stack([number, d.T])], axis=-1)
            order = np.argsort(both[1], axis=-1, kind="stable")[:, :nearest]
            best[measure] = np.take_along_axis(both, order[None], axis=-1)
    return {
        measure: _exact(model, source, targets[measure], index.astype(int), measure)
        for measure, (index, _) in best.items()
    }


def _exact(
    model: TrainedModel, source: Source, targets: Array, index: np.ndarray, measure: str
) -> tuple[np.ndarray, np.ndarray]:
    """Indices in the order of distances that do not cancel, and these, (Q, nearest)."""
    found = np.asarray(_measured(_pixels(model, source, index.reshape(-1)))[measure], np.float64)
    found = found.reshape(1, *index.shape, -1)
    asked = np.asarray(targets, np.float64).reshape(-1, index.shape[0], 1, found.shape[-1])
    distance = np.sqrt(np.square(found - asked).mean(-1)).min(0)
    order = np.argsort(distance, axis=-1, kind="stable")
    return np.take_along_axis(index, order, -1), np.take_along_axis(distance, order, -1)


def _measured(images: Array | np.ndarray) -> dict[str, Array]:
    """What is compared of images (N, h, w, C): (N, D) per measure."""
    number, _, _, channels = images.shape
    coarse = jax.image.resize(images, (number, _COARSE, _COARSE, channels), "linear")
    return {
        "pixels": jnp.reshape(images, (number, -1)),
        "downsampled": coarse.reshape(number, -1),
    }


def _as_decoded(model: TrainedModel) -> ImageSpec:
    """The data's images as a decoder's means are: not binarised."""
    image = model.config.image
    return dataclasses.replace(image, binarize=False, num_bits=8) if image.binarize else image


def _pixels(model: TrainedModel, source: Source, index: np.ndarray) -> np.ndarray:
    """Images (N, h, w, C) of a source, without the border."""
    image = _as_decoded(model)
    return image.without_border(read_pixels(image, source, index))
