"""The mode `evaluate`: how likely a split is to a model, as a report, a table and a picture."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from nvae_jax.data.sources import read_many
from nvae_jax.data.transforms import prepare_eval
from nvae_jax.evaluation.inputs import SPLITS, fixed_split
from nvae_jax.evaluation.likelihood import make_image_likelihood
from nvae_jax.evaluation.pictures import draw_bounds, draw_groups
from nvae_jax.evaluation.trained import TrainedModel, open_run
from nvae_jax.model.distributions import ACTIVE_KL, bits_per_dimension
from nvae_jax.options import require, validate
from nvae_jax.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Options of `evaluate`.

    Attributes:
      split: train or test
      draws: importance weights an image; the bound tightens with them
      images: how many of the split's images, from its start; all by default
      batch_size: images at a time on each device
      draws_at_once: draws of an image in one pass; faster for few images, and takes more memory
      seed: of the draws
    """

    split: str = "test"
    draws: int = 1
    images: int | None = None
    batch_size: int = 64
    draws_at_once: int = 1
    seed: int = 0

    def __post_init__(self):
        require("split", self.split, self.split in SPLITS, ", ".join(SPLITS))
        validate(self, "draws", "images", "batch_size", "draws_at_once")

    @property
    def counts(self) -> tuple[int, ...]:
        """Numbers of draws that are reported: powers of ten, and all."""
        return (*(10**i for i in range(10) if 10**i < self.draws), self.draws)


def evaluate(
    path: str | os.PathLike[str],
    options: EvaluateOptions = EvaluateOptions(),
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """Scores a split: NELBO, importance-weighted bounds, KL and active channels of every group.

    Writes `evaluate/<split>_<draws>.json`, and pictures of the groups and of the bounds. What is
    done is kept in a file beside it, so a run that was interrupted goes on where it stopped.

    Args:
      path: the work directory.
      options: what to score, and how closely.
      mesh: the devices; all there are, by default.

    Returns: the report, an object with a JSON form. Values are nats an image.

    Raises:
      FileNotFoundError: there is no such work directory or checkpoint.
      ValueError: more images are asked for than there are.
    """
    model = open_run(path, mesh)
    source = fixed_split(model.dataset, options.split)
    number = len(source) if options.images is None else options.images
    require("images", number, number <= len(source), f"at most {len(source)}")
    name = f"evaluate/{options.split}_{options.draws}"
    provenance = {"step": model.step, "images": number} | {
        name: getattr(options, name) for name in ("split", "draws", "seed")
    }
    progress = _Progress(model.workdir, f"{name}.progress.jsonl", provenance)
    if progress.done:
        model.workdir.log(f"{progress.done:,} images are done already")

    likelihood = make_image_likelihood(
        model.config, options.counts, options.draws_at_once, options.seed
    )

    def score(variables: Any, batch: Any) -> Any:
        x = prepare_eval(
            batch["image"],
            batch["index"],
            binarize=model.dataset.binarize,
            num_bits=model.config.num_bits,
        )
        return likelihood(variables, x, batch["index"])

    def read(index: np.ndarray) -> dict[str, np.ndarray]:
        images = np.stack(read_many(source, index))
        return {"image": images, "index": index.astype(np.uint32)}

    started = time.monotonic()
    compiled = model.compile(score)
    for _, scores in model.in_batches(
        compiled, number, options.batch_size, read, "images scored", progress.done
    ):
        progress.add(scores)

    report = _summary(model, options, provenance, progress)
    report["seconds"] = time.monotonic() - started
    model.workdir.write(f"{name}.json", json.dumps(report, indent=1).encode())
    model.workdir.save_picture(name.replace("/", "_"), draw_groups(report["groups"])[None])
    if len(options.counts) > 1:
        curve = draw_bounds(report["bounds"], -report["nelbo"]["nats"])
        model.workdir.save_picture(f"{name.replace('/', '_')}_bounds", curve[None])
    progress.remove()
    for line in _table(report):
        model.workdir.log(line)
    return report


class _Progress:
    """Scores of images so far, each batch a line of a file below a line of what they are."""

    def __init__(self, workdir: Workdir, name: str, provenance: Mapping[str, Any]):
        self._workdir, self._name = workdir, name
        self._path = workdir.path / name
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        self._batches = []
        for i, line in enumerate(lines):
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                break  # It was being written when its process ended.
            if i == 0 and record != provenance:
                break
            if i > 0:
                self._batches.append(record)
        # Anew, so that no broken line stays.
        records = [json.dumps(record) for record in (dict(provenance), *self._batches)]
        workdir.write(name, "\n".join(records).encode())

    @property
    def done(self) -> int:
        """Images that are scored."""
        return sum(len(batch["reconstruction"]) for batch in self._batches)

    def add(self, scores: Mapping[str, np.ndarray]) -> None:
        """Keeps the scores of a batch's images."""
        scores = dict(scores)
        kl = np.asarray(scores.pop("kl_per_channel"), np.float64)  # (B, groups, Z)
        scores |= {"group_kl": kl.sum(-1), "channel_kl_sum": kl.sum(0)}
        self._batches.append({key: np.asarray(x).tolist() for key, x in scores.items()})
        self._workdir.append(self._name, json.dumps(self._batches[-1]))

    def per_image(self, key: str) -> np.ndarray:
        """A score of every image, (N, …)."""
        return np.concatenate([np.asarray(batch[key], np.float64) for batch in self._batches])

    def sum(self, key: str) -> np.ndarray:
        """The sum of what batches have summed."""
        return np.sum([np.asarray(batch[key]) for batch in self._batches], axis=0)

    def remove(self) -> None:
        """Ends it, once the report is written."""
        self._workdir.remove(self._name)


def _summary(
    model: TrainedModel,
    options: EvaluateOptions,
    provenance: Mapping[str, Any],
    progress: _Progress,
) -> dict[str, Any]:
    group_kl, bounds = progress.per_image("group_kl"), progress.per_image("bounds")
    reconstruction = progress.per_image("reconstruction")
    active = (progress.sum("channel_kl_sum") / len(group_kl) > ACTIVE_KL).sum(-1)
    top_down = enumerate(reversed(model.config.scales))
    scales = [number for number, scale in top_down for _ in range(scale.groups)]

    def mean(values: np.ndarray) -> dict[str, float]:
        error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
        nats, error = float(values.mean()), float(error)
        bits = bits_per_dimension(nats, model.config.image_dimensions)
        return {"nats": nats, "standard_error": error, "bits_per_dim": bits}

    nelbo = reconstruction + group_kl.sum(-1)
    return {
        "provenance": dict(provenance),
        "nelbo": mean(nelbo),
        "reconstruction": mean(reconstruction),
        "kl": mean(group_kl.sum(-1)),
        "sampled_nelbo": mean(progress.per_image("sampled_nelbo")),
        "bounds": [{"draws": draws} | mean(bounds[:, i]) for i, draws in enumerate(options.counts)],
        "groups": [
            {
                "scale": scale,
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
