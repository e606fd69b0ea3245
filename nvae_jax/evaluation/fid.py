"""The mode `fid`: how far samples are from the data, by Inception's features."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from nvae_jax.data.sources import read_many
from nvae_jax.data.transforms import prepare_eval
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
from nvae_jax.evaluation.trained import TrainedModel, group_temperatures, image_keys, open_run
from nvae_jax.model.distributions import without_border
from nvae_jax.options import require, validate
from nvae_jax.parallel import replicated

_MANIFOLD_IMAGES = 10_000  # that precision and recall look at, as their authors do


@dataclasses.dataclass(frozen=True)
class FIDOptions:
    """Options of `fid`.

    Attributes:
      weights: Inception's of 2015, a file or an address; .pb, .tgz or .pth
      weights_sha256: of that file; an address needs it
      num_images: samples
      reference: features of another run's data, a .f32 file that this mode has written
      reference_images: how many of the split's images at most
      split: of the reference, train or test
      temperature: of the prior; one number, one a scale or one a group, top-down
      seed: of the samples
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
        require("num_images", self.num_images, self.num_images >= 10, "10 or more")
        require("split", self.split, self.split in SPLITS, ", ".join(SPLITS))


def fid(
    path: str | os.PathLike[str], options: FIDOptions, mesh: Mesh | None = None
) -> dict[str, Any]:
    """Fréchet and kernel distance, precision and recall of samples against a split.

    The reference is the split as training shows it, mirrored at random where training does,
    binarised where the model is of binary data, at 8 bits. Its features are kept in the work
    directory with their provenance and used again. A run that was interrupted goes on where it
    stopped. The report is `fid/report_<seed>.json`.

    Args:
      path: the work directory.
      options: whose weights, how many images and how to draw them.
      mesh: the devices; all there are, by default.

    Returns: the report, an object with a JSON form.

    Raises:
      FileNotFoundError: there is no such work directory, checkpoint or file.
      ValueError: weights of another checksum or form, or another network's reference.
      FloatingPointError: samples are not finite.
    """
    model = open_run(path, mesh)
    temperatures = group_temperatures(model.config, options.temperature)
    weights, digest = load_weights(options.weights, options.weights_sha256)
    if options.recalibrate:
        model = recalibrated(model, temperatures)
    params = jax.device_put(weights, replicated(model.mesh))
    if options.reference is None:
        reference = _reference_features(model, options, digest, params)
    else:
        reference = _read_reference(Path(options.reference), digest)
    provenance = dataclasses.asdict(options) | {"step": model.step, "weights_sha256": digest}
    file = _FeatureFile(model, f"fid/samples_{options.seed}", provenance)
    features = file.complete(
        _sample_features(model, options),
        "samples",
        constants=(params, np.uint32(options.seed), temperatures),
    )

    kid, kid_error = kernel_distance(reference, features)
    rng = np.random.default_rng(0)
    real, fake = (rng.permutation(x)[:_MANIFOLD_IMAGES] for x in (reference, features))
    precision, recall = precision_recall(real, fake)
    report = {
        "provenance": provenance | {"reference_images": len(reference)},
        "fid": frechet_distance(*gaussian(reference), *gaussian(features)),
        "kid": kid,
        "kid_standard_error": kid_error,
        "precision": precision,
        "recall": recall,
    }
    target = model.workdir.write(
        f"fid/report_{options.seed}.json", json.dumps(report, indent=1).encode()
    )
    file.remove()
    model.workdir.log(
        f"FID {report['fid']:.3f}, KID {kid:.5f} ± {kid_error:.5f}, precision {precision:.3f}, "
        f"recall {recall:.3f}: {len(features):,} samples against {len(reference):,} images: "
        f"{target}"
    )
    return report


Work = tuple[Callable[..., Any], int, int, Callable[[np.ndarray], Any]]


def _sample_features(model: TrainedModel, options: FIDOptions) -> Work:
    draw = make_draw(model.config, options.pixels)

    def features(
        variables: Any, index: Array, params: Any, seed: Array, temperatures: Array
    ) -> Array:
        return fid_features(params, draw(variables, index, seed, temperatures))

    def read(index: np.ndarray) -> np.ndarray:
        return index.astype(np.uint32)

    return features, options.num_images, options.batch_size, read


def _reference_features(
    model: TrainedModel, options: FIDOptions, digest: str, params: Any
) -> np.ndarray:
    dataset, source = model.dataset, fixed_split(model.dataset, options.split)
    mirror = dataset.flip and options.split == "train"

    def features(_: Any, batch: Any, params: Any) -> Array:
        x = prepare_eval(batch["image"], batch["index"], binarize=dataset.binarize, num_bits=8)
        if mirror:
            mirrored = jax.vmap(jax.random.bernoulli)(image_keys(0, batch["index"]))
            x = jnp.where(mirrored[:, None, None, None], x[:, :, ::-1], x)
        return fid_features(params, without_border(model.config, x))

    number = min(len(source), options.reference_images)
    # Not the first ones: many splits are in the order of their classes.
    chosen = np.sort(np.random.default_rng(0).permutation(len(source))[:number])

    def read(item: np.ndarray) -> dict[str, np.ndarray]:
        index = chosen[item]
        images = np.stack(read_many(source, index))
        return {"image": images, "index": index.astype(np.uint32)}

    provenance = {
        "data": model.workdir.load_config().data.to_dict(),
        "split": options.split,
        "images": number,
        "weights_sha256": digest,
    }
    file = _FeatureFile(model, f"fid/reference_{options.split}_{number}", provenance)
    work = features, number, options.batch_size, read
    return file.complete(work, "reference images", constants=(params,))


def _read_reference(path: Path, digest: str) -> np.ndarray:
    provenance = json.loads(path.with_suffix(".json").read_text())
    theirs = provenance["weights_sha256"]
    require("reference", str(path), theirs == digest, f"features by the weights {digest}")
    features = _read_features(path)
    number = provenance["images"]
    require("reference", str(path), len(features) == number, f"a complete one of {number:,} images")
    return features


def _read_features(path: Path) -> np.ndarray:
    """The whole rows of a file, (N, 2048)."""
    features = np.fromfile(path, np.float32)
    rows = len(features) // NUM_FEATURES
    return features[: rows * NUM_FEATURES].reshape(rows, NUM_FEATURES)


class _FeatureFile:
    """Features of numbered images as raw float32, `<name>.f32`, beside `<name>.json`.

    What is there of another provenance is not used.
    """

    def __init__(self, model: TrainedModel, name: str, provenance: Mapping[str, Any]):
        self._model, self._name = model, name
        self._path = model.workdir.path / f"{name}.f32"
        text = json.dumps(provenance, indent=1)
        described = self._path.with_suffix(".json")
        self.features = np.zeros((0, NUM_FEATURES), np.float32)
        if described.exists() and self._path.exists() and described.read_text() == text:
            self.features = _read_features(self._path)
        # Anew, so that no broken row stays.
        model.workdir.write(f"{name}.f32", self.features.tobytes())
        model.workdir.write(f"{name}.json", text.encode())

    def complete(self, work: Work, what: str, constants: tuple[Any, ...] = ()) -> np.ndarray:
        """Computes and keeps what is missing; returns all features, (N, 2048)."""
        function, number, batch_size, read = work
        parts, done = [self.features], len(self.features)
        if done > 0:
            self._model.workdir.log(f"{done:,} of {number:,} {what} are done already")
        batches = self._model.in_batches(
            self._model.compile(function), number, batch_size, read, what, done, constants
        )
        for _, features in batches:
            if not np.isfinite(features).all():
                raise FloatingPointError(f"features of {what} are not finite")
            if jax.process_index() == 0:
                with self._path.open("ab") as file:
                    file.write(features.astype(np.float32).tobytes())
            parts.append(features)
        return np.concatenate(parts)

    def remove(self) -> None:
        """Removes both files."""
        for suffix in ("f32", "json"):
            self._model.workdir.remove(f"{self._name}.{suffix}")
