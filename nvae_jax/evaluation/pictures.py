"""Pictures of a run: samples, reconstructions and curves, as arrays of pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from nvae_jax.data.sources import Source
from nvae_jax.evaluation.figures import pixels, two_panels
from nvae_jax.evaluation.inputs import read_pixels
from nvae_jax.evaluation.sampling import make_reconstructor, make_sampler
from nvae_jax.model.vae import VAEConfig

TEMPERATURES = (0.7, 0.8, 0.9, 1.0)
COLUMNS = 8


def make_pictures(
    config: VAEConfig, test: Source, has_posterior: bool = True
) -> Callable[[Any], dict[str, np.ndarray]]:
    """A function from a model's variables to its pictures, each (rows, columns, h, w, C) in [0, 1].

    `samples`: a row of COLUMNS images per temperature, all rows from the same noise.
    `reconstructions`: rows of test images, each above a row of their reconstructions. They have
    COLUMNS columns, or as many as there are test images.
    The noise and the test images are the same at every call. Without a posterior (see `Objective`),
    reconstructions are those of the codes' means.
    """
    sample = make_sampler(config, COLUMNS)
    reconstruct = make_reconstructor(config, has_posterior)
    columns = min(COLUMNS, len(test))
    # From all over the split, because neighbours in it may look alike.
    count = min(2 * columns, len(test) // columns * columns)
    index = np.arange(count) * (len(test) // count)
    x = read_pixels(config.image, test, index)
    inputs = config.image.without_border(x)

    def draw(variables: Any) -> dict[str, np.ndarray]:
        key = jax.random.key(0)
        samples = [np.asarray(sample(variables, key, t)) for t in TEMPERATURES]
        outputs = np.asarray(reconstruct(variables, x, key))
        rows = [
            images[start : start + columns]
            for start in range(0, count, columns)
            for images in (inputs, outputs)
        ]
        return {"samples": np.stack(samples), "reconstructions": np.stack(rows)}

    return draw


def draw_curves(
    records: Sequence[Mapping[str, float]],
    baseline: float | None,
    title: str,
    criterion: str = "nelbo",
    label: str = "NELBO, nats per image",
) -> np.ndarray:
    """Training and validation NELBO by step, and the training KL per group.

    Args:
      records: what a run measured, in the order of steps, as `Records.read_metrics` returns it.
      baseline: NELBO of independent pixels, in nats per image; None: not known.
      title: of the picture.
      criterion: the metric in place of the NELBO.
      label: what to call it.

    Returns: (H, W, 3) in [0, 1].
    """
    import matplotlib

    figure, (left, right) = two_panels()
    for split, phase in (("train", "training"), ("validation", "validation")):
        name = f"{split}/{criterion}"
        points = [(r["step"], r[name]) for r in records if name in r]
        if points:
            left.plot(*zip(*points, strict=True), label=phase, marker=".")
    if baseline is not None:
        left.axhline(baseline, color="grey", linestyle="--", label="independent pixels")
        name = f"validation/{criterion}"
        lowest = min((r[name] for r in records if name in r), default=0.0)
        gap = abs(baseline - lowest)
        left.set_ylim(lowest - 0.1 * gap, baseline + 0.5 * gap)
    left.set(xlabel="step", ylabel=label, title=title)
    if left.lines:
        left.legend()

    groups = sorted({name for r in records for name in r if name.startswith("train/group_kl/")})
    for i, name in enumerate(groups):
        points = [(r["step"], r[name]) for r in records if name in r]
        color = matplotlib.colormaps["viridis"](i / max(len(groups) - 1, 1))
        ends = i in (0, len(groups) - 1)
        right.plot(*zip(*points, strict=True), color=color, label=f"group {i}" if ends else None)
    right.set(xlabel="step", ylabel="KL, nats per image", title="KL of every group, from the top")
    if groups:
        right.legend()
    return pixels(figure)


def draw_groups(groups: Sequence[Mapping[str, float]]) -> np.ndarray:
    """KL and active channels of every group as bars, coloured by scale.

    Args:
      groups: top-down, each with `scale`, `kl` in nats per image, `active_channels` and `channels`.

    Returns: (H, W, 3) in [0, 1].
    """
    figure, (left, right) = two_panels()
    numbers = range(len(groups))
    colors = [f"C{int(group['scale'])}" for group in groups]
    left.bar(numbers, [group["kl"] for group in groups], color=colors)
    left.set(xlabel="group, from the top", ylabel="KL, nats per image")
    right.bar(numbers, [group["channels"] for group in groups], color="lightgrey")
    right.bar(numbers, [group["active_channels"] for group in groups], color=colors)
    right.set(xlabel="group, from the top", ylabel="active channels")
    for axis in (left.xaxis, right.xaxis, right.yaxis):
        axis.get_major_locator().set_params(integer=True)
    return pixels(figure)


def draw_bounds(bounds: Sequence[Mapping[str, float]], elbo: float) -> np.ndarray:
    """The importance-weighted bound by the number of draws.

    Args:
      bounds: rising in `draws`, each with `nats` of -log p(x) and its `standard_error`.
      elbo: the ELBO, nats per image, for comparison.

    Returns: (H, W, 3) in [0, 1].
    """
    figure, (left, right) = two_panels()
    draws = [bound["draws"] for bound in bounds]
    nats = np.asarray([-bound["nats"] for bound in bounds])
    errors = [bound["standard_error"] for bound in bounds]
    left.errorbar(draws, nats, errors, marker="o", capsize=3)
    left.axhline(elbo, color="grey", linestyle="--", label="ELBO")
    left.set(xscale="log", xlabel="draws K", ylabel="bound of log p(x), nats per image")
    left.legend()
    right.plot(draws, nats - nats[0], marker="o")
    right.set(xscale="log", xlabel="draws K", ylabel="gain on one draw, nats per image")
    return pixels(figure)
