"""The mode `fid`: how far samples are from the data, by Inception's features."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from jax import Array

from nvae_jax.command_line import validate
from nvae_jax.errors import reading, require
from nvae_jax.evaluation.batches import on_pixels, over_split
from nvae_jax.evaluation.distances import (
    frechet_distance,
    gaussian,
    kernel_distance,
    precision_recall,
)
from nvae_jax.evaluation.inception import NUM_FEATURES, fid_features
from nvae_jax.evaluation.inception_weights import load_weights
from nvae_jax.evaluation.inputs import SPLITS, fixed_split
from nvae_jax.evaluation.recalibration import recalibrated
from nvae_jax.evaluation.sampling import Pixels, make_draw
from nvae_jax.evaluation.trained import TrainedModel, group_temperatures, image_keys
from nvae_jax.image_spec import mirrored_at_random
from nvae_jax.modes.results import provenance, save_report
from nvae_jax.parallel import replicated
from nvae_jax.workdir.rows import Rows, read_rows

_FEWEST = 10  # images that have a distance
_MANIFOLD_IMAGES = 10_000  # that precision and recall look at, as their authors do


@dataclasses.dataclass(frozen=True)
class FIDOptions:
    """Options of `fid`.

    Attributes:
      weights: the weights of Inception of 2015, a file or an address; .pb, .tgz or .pth
      weights_sha256: checksum of that file; an address requires it
      num_images: how many samples
      reference: features of another run's data, a .f32 file that this mode has written
      reference_images: the most images of the split that are used
      split: the reference's split, train or test
      temperature: of the prior's noise; one number, one per scale or one per group, top-down
      seed: seeds the samples
      pixels: mean of the decoder's distribution, or sample
      recalibrate: use batch-norm statistics of samples at this temperature
      batch_size: images at a time on each device
    """

    weights: str
    weights_sha256: str | None = None
    num_images: int = 50_000
    reference: str | None = None
    reference_images: int = 50_000
    split: str = "train"
    temperature: tuple[float, ...] = (1.0,)
    seed: int = 0
    pixels: Pixels = "mean"
    recalibrate: bool = False
    batch_size: int = 32

    def __post_init__(self):
        validate(self, "num_images", "reference_images", "batch_size")
        few = self.num_images < _FEWEST
        require("num_images", self.num_images, not few, f"{_FEWEST} or more")
        require("split", self.split, self.split in SPLITS, ", ".join(SPLITS))


def fid(model: TrainedModel, options: FIDOptions) -> dict[str, Any]:
    """Fréchet and kernel distance, precision and recall of samples against a split.

    The reference is the split as training shows it, mirrored at random where training does,
    binarised where the model is of binary data, at 8 bits. Its features are kept in the work
    directory with their provenance and used again. A run that was interrupted goes on where it
    stopped. The report is `fid/report_<seed>.json`.

    Args:
      model: the model.
      options: whose weights, how many images and how to draw them.

    Returns: the report, an object with a JSON form.

    Raises:
      ConfigError: the data is missing, the weights have another checksum or form, or the reference
        is another network's.
      FloatingPointError: samples are not finite.
    """
    temperatures = group_temperatures(model.config, options.temperature)
    weights, digest = load_weights(options.weights, options.weights_sha256)
    if options.recalibrate:
        model = recalibrated(model, temperatures)
    params = jax.device_put(weights, replicated(model.mesh))
    if options.reference is None:
        reference = _reference_features(model, options, digest, params)
    else:
        reference = _read_reference(options.reference, digest)
    made_with = provenance(model, options) | {"weights_sha256": digest}
    rows = model.workdir.rows(f"fid/samples_{options.seed}", NUM_FEATURES, made_with)
    done = _say_done(model, rows, options.num_images, "samples")
    draw = make_draw(model.config, options.pixels)

    def sample_features(variables: Any, index: Array, params: Any, *draws: Array) -> Array:
        return fid_features(params, draw(variables, index, *draws))

    batches = model.over_arrays(
        sample_features,
        np.arange(done, options.num_images, dtype=np.uint32),
        options.batch_size,
        "samples",
        constants=(params, np.uint32(options.seed), temperatures),
        done=done,
    )
    features = _complete(rows, batches, "samples")

    kid, kid_error = kernel_distance(reference, features)
    rng = np.random.default_rng(0)
    real, fake = (rng.permutation(x)[:_MANIFOLD_IMAGES] for x in (reference, features))
    precision, recall = precision_recall(real, fake)
    report = {
        "provenance": made_with | {"reference_images": len(reference)},
        "fid": frechet_distance(*gaussian(reference), *gaussian(features)),
        "kid": kid,
        "kid_standard_error": kid_error,
        "precision": precision,
        "recall": recall,
    }
    target = save_report(model, f"fid/report_{options.seed}", report)
    rows.remove()
    model.workdir.log(
        f"FID {report['fid']:.3f}, KID {kid:.5f} ± {kid_error:.5f}, precision {precision:.3f}, "
        f"recall {recall:.3f}: {len(features):,} samples against {len(reference):,} images: "
        f"{target}"
    )
    return report


def _reference_features(
    model: TrainedModel, options: FIDOptions, digest: str, params: Any
) -> np.ndarray:
    dataset, source = model.dataset, fixed_split(model.dataset, options.split)
    mirror = dataset.flip and options.split == "train"
    image = dataclasses.replace(model.config.image, num_bits=8)

    def features(params: Any, x: Array, index: Array) -> Array:
        if mirror:
            x = mirrored_at_random(x, image_keys(0, index))
        return fid_features(params, image.without_border(x))

    number = min(len(source), options.reference_images)
    enough = f"splits and reference_images of {_FEWEST} or more"
    require(f"images of the split {options.split}", number, number >= _FEWEST, enough)
    # Not the first ones: many splits are in the order of their classes.
    chosen = np.sort(np.random.default_rng(0).permutation(len(source))[:number])
    described = {
        "data": model.workdir.load_config()["data"],
        "split": options.split,
        "images": number,
        "weights_sha256": digest,
    }
    name = f"fid/reference_{options.split}_{number}"
    rows = model.workdir.rows(name, NUM_FEATURES, described)
    done = _say_done(model, rows, number, "reference images")
    compiled = model.compile(on_pixels(image, features))
    batches = over_split(
        model.mesh,
        lambda _, batch: compiled(params, batch),
        source,
        chosen[done:],
        options.batch_size * model.mesh.size,
        model.progress("reference images", done),
    )
    return _complete(rows, batches, "reference images")


def _read_reference(path: str, digest: str) -> np.ndarray:
    """The features in a file that this mode has written."""
    allowed = "a .f32 file beside its .json, as this mode writes them"
    data = epath.Path(path)
    with reading("reference", path, allowed, ValueError, KeyError, TypeError):
        described = json.loads(data.with_suffix(".json").read_text())
        theirs, number = described["weights_sha256"], described["images"]
        features = read_rows(data, NUM_FEATURES)
    require("reference", path, theirs == digest, f"features by the weights {digest}")
    require("reference", path, len(features) == number, f"a complete one of {number:,} images")
    return features


def _say_done(model: TrainedModel, rows: Rows, number: int, what: str) -> int:
    if len(rows):
        model.workdir.log(f"{len(rows):,} of {number:,} {what} are done already")
    return len(rows)


def _complete(rows: Rows, batches: Iterator[tuple[int, np.ndarray]], what: str) -> np.ndarray:
    """Keeps the features of further batches; returns all features, (N, 2048)."""
    for _, features in batches:
        if not np.isfinite(features).all():
            raise FloatingPointError(f"features of {what} are not finite")
        rows.append(features)
    return rows.values
