"""The mode `codes`: what codes say of their images, and how all of them fit the prior."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from nvae_jax.command_line import validate
from nvae_jax.errors import require
from nvae_jax.evaluation.classes import matched_accuracy
from nvae_jax.evaluation.collapse import (
    active_units,
    code_information,
    draw_plane,
    linear_probe,
    principal_plane,
    prior_mmd,
)
from nvae_jax.evaluation.inputs import SPLITS, fixed_split
from nvae_jax.evaluation.latents import decode_latents
from nvae_jax.evaluation.trained import TrainedModel, image_keys, image_noise
from nvae_jax.model import VAEConfig
from nvae_jax.model.families import make_folded_network
from nvae_jax.model.mixture import class_kl_parts
from nvae_jax.modes.results import provenance, save_images, save_report, save_rows

_PLANES = 4  # groups whose plane is drawn, from the top
_LARGEST = 2048  # latents of a group, for its principal components
_STYLES = 8  # in a picture of classes
_FOLDS = 5  # of the probe's cross-validation


@dataclasses.dataclass(frozen=True)
class CodesOptions:
    """Options of `codes`.

    Attributes:
      split: train or test
      images: how many of the split's images, from its start; all by default
      seed: seeds the draws
      batch_size: images at a time on each device
      name: the name of what is written below codes/; the split by default
    """

    split: str = "test"
    images: int | None = None
    seed: int = 0
    batch_size: int = 64
    name: str | None = None

    def __post_init__(self):
        require("split", self.split, self.split in SPLITS, ", ".join(SPLITS))
        validate(self, "images", "batch_size")


def codes(model: TrainedModel, options: CodesOptions = CodesOptions()) -> dict[str, Any]:
    """Looks for collapse: active units, the aggregate posterior against the prior, information.

    A group's latents are taken as the standard-normal draws that the prior turns into them, given
    the groups above, so that in every family they fit the prior if they are like draws of N(0, I).

    Writes `codes/<name>.json`, `codes/<name>.png`, the planes in which the codes of the top groups
    vary most, and, of a model with classes, `codes/<name>_classes.png`: a row per class, the same
    styles in all of them.

    Args:
      model: the model.
      options: of which images.

    Returns: the report, an object with a JSON form. By group, top-down: `latents`, `active` ones,
      `mmd` (MMD² from the prior) and, where the data has labels, `probe`. Of a posterior of one
      code: `information`, see `code_information`. Of classes: `information` and `imbalance`, see
      `class_kl_parts`, and, where the data has labels, `accuracy` after the best matching.

    Raises:
      ConfigError: the data is missing, or it has fewer images than asked for.
    """
    dataset = model.dataset
    source = fixed_split(dataset, options.split)
    number = len(source) if options.images is None else options.images
    require("images", number, 2 <= number <= len(source), f"2 to {len(source)}")
    has_posterior = model.run.objective.has_posterior
    batches = model.over_split(
        _coder(model.config, options.seed, has_posterior),
        source,
        np.arange(number),
        options.batch_size,
        model.progress("images encoded"),
    )
    found = _concatenated([batch for _, batch in batches])
    labels = None if dataset.labels is None else dataset.labels[options.split][:number]

    groups = range(model.config.total_groups)
    report = provenance(model, options) | {"images": number}
    report["groups"] = [
        _of_group(found[f"means_{g}"], found[f"draws_{g}"], labels, options.seed) for g in groups
    ]
    if has_posterior and "mean" in found:
        report["information"] = code_information(found["mean"], found["sigma"], found["code"])
    if "class_logits" in found:
        information, imbalance = class_kl_parts(jnp.asarray(found["class_logits"]))
        report["classes"] = {"information": float(information), "imbalance": float(imbalance)}
        if labels is not None:
            chosen = found["class_logits"].argmax(1)
            report["classes"]["accuracy"], _ = matched_accuracy(chosen, labels)
    name = f"codes/{options.name or options.split}"
    for line in _lines(report):
        model.workdir.log(line)
    if "class_logits" in found:
        _draw_classes(model, f"{name}_classes", options)
    planes = [
        draw_plane(principal_plane(found[f"draws_{g}"]), labels, f"group {g}")
        for g in groups
        if 2 <= found[f"draws_{g}"].shape[1] <= _LARGEST
    ]
    if planes:
        save_images(model, name, np.stack(planes[:_PLANES]), 1, "planes of the codes")
    save_report(model, name, report)
    return report


@functools.cache
def _coder(config: VAEConfig, seed: int, has_posterior: bool) -> Callable[..., dict[str, Array]]:
    """A function `(variables, x, index)` to draws and means of every group, and the posterior."""
    network = make_folded_network(config)

    def code(variables: Any, x: Array, index: Array) -> dict[str, Array]:
        noise = image_noise(config, image_keys(seed, index), 1.0 if has_posterior else 0.0)
        zeros = [0.0 * z for z in noise]
        found: dict[str, Array] = {}
        for name, given in (("draws", noise), ("means", zeros)):
            latents: Any = network.apply(variables, x, given, method="encode")
            for g, z in enumerate(latents.noise):
                found[f"{name}_{g}"] = z.reshape(len(x), -1)
        output: Any = network.apply(variables, x, False, noise)
        if output.posterior is not None:
            posterior = output.posterior
            found |= {"mean": posterior.mean, "sigma": posterior.sigma, "code": output.codes}
        if output.class_logits is not None:
            found["class_logits"] = output.class_logits
        return found

    return code


def _concatenated(batches: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def _of_group(
    means: np.ndarray, draws: np.ndarray, labels: np.ndarray | None, seed: int
) -> dict[str, Any]:
    report: dict[str, Any] = {
        "latents": means.shape[1],
        "active": int(active_units(means).sum()),
        "mmd": prior_mmd(draws, seed=seed),
    }
    if labels is not None:
        counts = np.unique(labels, return_counts=True)[1]
        if len(counts) > 1 and counts.min() >= _FOLDS:
            report["probe"] = dataclasses.asdict(linear_probe(means, labels, _FOLDS, seed))
    return report


def _draw_classes(model: TrainedModel, name: str, options: CodesOptions) -> None:
    classes = model.config.latent_shapes[0][-1]
    keys = image_keys(options.seed, np.arange(_STYLES, dtype=np.uint32), draw=1)
    styles = np.asarray(image_noise(model.config, keys)[-1])
    y = np.repeat(np.eye(classes, dtype=np.float32), _STYLES, axis=0)[:, None, None]
    z = np.tile(styles, (classes, 1, 1, 1))
    images = decode_latents(model, [y, z], batch_size=options.batch_size)
    rows = images.reshape(classes, _STYLES, *images.shape[1:])
    save_rows(model, name, rows, f"{classes} classes, in {_STYLES} styles")


def _lines(report: Mapping[str, Any]) -> list[str]:
    lines = ["group  latents  active  MMD² from the prior  linear probe"]
    for g, group in enumerate(report["groups"]):
        probe = group.get("probe")
        says = "" if probe is None else f"{probe['accuracy']:.3f} (chance {probe['chance']:.3f})"
        lines.append(
            f"{g:>5}  {group['latents']:>7,}  {group['active']:>6,}  {group['mmd']:>19.5f}  {says}"
        )
    if information := report.get("information"):
        parts = ", ".join(f"{name} {value:.3f}" for name, value in information.items())
        lines.append(f"information, nats per image: {parts}")
    if classes := report.get("classes"):
        parts = ", ".join(f"{name} {value:.3f}" for name, value in classes.items())
        lines.append(f"classes: {parts}")
    return lines
