"""The mode `evaluate`: how likely a split is to a model, as a report, a table and a picture."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from nvae_jax.command_line import validate
from nvae_jax.errors import require
from nvae_jax.evaluation.inputs import SPLITS, fixed_split
from nvae_jax.evaluation.likelihood import make_image_likelihood, require_bound
from nvae_jax.evaluation.pictures import draw_bounds, draw_groups
from nvae_jax.evaluation.recalibration import recalibrated_on_images
from nvae_jax.evaluation.trained import TrainedModel, scales_of_groups
from nvae_jax.model.distributions import ACTIVE_KL, bits_per_dimension
from nvae_jax.model.vae import VAEConfig
from nvae_jax.modes.results import save_report


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Options of `evaluate`.

    Attributes:
      split: train or test
      draws: importance weights per image; the bound tightens with them
      images: how many of the split's images, from its start; all by default
      batch_size: images at a time on each device
      draws_at_once: draws per image in one pass; faster for few images, but requires more memory
      seed: seeds the draws
      recalibrate: use batch-norm statistics of training images
    """

    split: str = "test"
    draws: int = 1
    images: int | None = None
    batch_size: int = 64
    draws_at_once: int = 1
    seed: int = 0
    recalibrate: bool = False

    def __post_init__(self):
        require("split", self.split, self.split in SPLITS, ", ".join(SPLITS))
        validate(self, "draws", "images", "batch_size", "draws_at_once")

    @property
    def counts(self) -> tuple[int, ...]:
        """The numbers of draws that are reported: powers of ten, and all."""
        return (*(10**i for i in range(10) if 10**i < self.draws), self.draws)


def evaluate(model: TrainedModel, options: EvaluateOptions = EvaluateOptions()) -> dict[str, Any]:
    """Scores a split: NELBO, importance-weighted bounds, KL and active channels per group.

    Writes `evaluate/<split>_<draws>.json`, and pictures of the groups and of the bounds. Scores are
    kept in files beside it until then, so a run that was interrupted goes on where it stopped.

    Args:
      model: the model.
      options: what to score, and how closely.

    Returns: the report, an object with a JSON form. Values are nats per image.

    Raises:
      ConfigError: there is no bound, the data is missing, or it has fewer images than asked for.
    """
    require_bound(model)
    if options.recalibrate:
        model = recalibrated_on_images(model)
    source = fixed_split(model.dataset, options.split)
    number = len(source) if options.images is None else options.images
    require("images", number, number <= len(source), f"at most {len(source)}")
    name = f"evaluate/{options.split}_{options.draws}{'_recalibrated' * options.recalibrate}"
    provenance = {"step": model.step, "images": number} | {
        name: getattr(options, name) for name in ("split", "draws", "seed")
    }
    shapes = _score_shapes(model.config, options)
    width = sum(math.prod(shape) for shape in shapes.values())
    rows = model.workdir.rows(f"{name}.progress", width, provenance)
    done = len(rows)
    if done:
        model.workdir.log(f"{done:,} images are done already")
    started = time.monotonic()
    batches = model.over_split(
        make_image_likelihood(model.config, options.counts, options.draws_at_once, options.seed),
        source,
        np.arange(done, number),
        options.batch_size,
        model.progress("images scored", done),
    )
    for first, scores in batches:
        count = len(scores["reconstruction"])
        if not all(np.isfinite(values).all() for values in scores.values()):
            raise FloatingPointError(
                f"scores of images {done + first} to {done + first + count - 1} of the split "
                f"{options.split} are not finite"
            )
        rows.append(np.concatenate([scores[key].reshape(count, -1) for key in shapes], axis=1))

    report = _summary(model, options, provenance, _by_name(rows.values, shapes))
    report["seconds"] = time.monotonic() - started
    save_report(model, name, report)
    picture = name.replace("/", "_")
    model.workdir.save_picture(picture, draw_groups(report["groups"])[None])
    if len(options.counts) > 1:
        curve = draw_bounds(report["bounds"], -report["nelbo"]["nats"])
        model.workdir.save_picture(f"{picture}_bounds", curve[None])
    rows.remove()
    for line in _table(report):
        model.workdir.log(line)
    return report


def _score_shapes(config: VAEConfig, options: EvaluateOptions) -> dict[str, tuple[int, ...]]:
    """The shapes of the scores of one image, see `make_image_likelihood`."""
    channels = max(latents for _, _, latents in config.latent_shapes)
    return {
        "reconstruction": (),
        "sampled_nelbo": (),
        "bounds": (len(options.counts),),
        "kl_per_channel": (config.total_groups, channels),
    }


def _by_name(rows: np.ndarray, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Scores (N, …) by name, in float64, from rows (N, width)."""
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])[:-1]
    parts = zip(shapes.items(), np.split(rows.astype(np.float64), ends, axis=1), strict=True)
    return {name: part.reshape(len(rows), *shape) for (name, shape), part in parts}


def _summary(
    model: TrainedModel,
    options: EvaluateOptions,
    provenance: Mapping[str, Any],
    scores: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    channel_kl, bounds = scores["kl_per_channel"], scores["bounds"]
    group_kl, reconstruction = channel_kl.sum(-1), scores["reconstruction"]
    scales = scales_of_groups(model.config)
    active = (channel_kl.mean(0) > ACTIVE_KL).sum(-1)

    def mean(values: np.ndarray) -> dict[str, float]:
        error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
        nats, error = float(values.mean()), float(error)
        bits = bits_per_dimension(nats, model.config.image.num_dimensions)
        return {"nats": nats, "standard_error": error, "bits_per_dim": bits}

    nelbo = reconstruction + group_kl.sum(-1)
    return {
        "provenance": dict(provenance),
        "nelbo": mean(nelbo),
        "reconstruction": mean(reconstruction),
        "kl": mean(group_kl.sum(-1)),
        "sampled_nelbo": mean(scores["sampled_nelbo"]),
        "bounds": [{"draws": draws} | mean(bounds[:, i]) for i, draws in enumerate(options.counts)],
        "groups": [
            {
                "scale": int(scale),
                "height": height,
                "width": width,
                "kl": float(kl),
                "active_channels": int(channels),
                "channels": latents,
            }
            for scale, (height, width, latents), kl, channels in zip(
                scales, model.config.latent_shapes, group_kl.mean(0), active, strict=True
            )
        ],
        "per_image": {"nelbo": nelbo.tolist(), "bound": bounds[:, -1].tolist()},
    }


def _table(report: Mapping[str, Any]) -> list[str]:
    def line(name: str, value: Mapping[str, float]) -> str:
        return (
            f"{name:>24}: {value['nats']:.3f} ± {value['standard_error']:.3f} nats, "
            f"{value['bits_per_dim']:.4f} bits/dim"
        )

    rows = [line(name, report[name]) for name in ("nelbo", "reconstruction", "kl")]
    rows += [line(f"-log p(x), {x['draws']} draws", x) for x in report["bounds"]]
    rows.append("group  resolution  KL, nats  active channels")
    for i, group in enumerate(report["groups"]):
        size = f"{group['height']}x{group['width']}"
        active = f"{group['active_channels']} of {group['channels']}"
        rows.append(f"{i:>5}  {size:>10}  {group['kl']:>8.3f}  {active:>15}")
    return rows
