"""Validation curves of several runs, in one picture."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np

from nvae_jax.errors import ConfigError
from nvae_jax.measuring.results import drawing
from nvae_jax.workdir import Workdir

Curves = dict[str, tuple[np.ndarray, np.ndarray]]


def read_curves(runs: Mapping[str, Sequence[str | os.PathLike[str]]]) -> Curves:
    """Validation NELBO of groups of runs.

    Args:
      runs: work directories by label.

    Returns: by label, the steps (S,) at which all runs of a group were validated, and their NELBO
      (runs, S) in nats per image.

    Raises:
      ConfigError: a folder holds no validation, or the runs of a group have no step in common.
    """
    curves = {}
    for label, paths in runs.items():
        values = []
        for path in paths:
            records = Workdir(path).records.read_metrics()
            value = {r["step"]: r["validation/nelbo"] for r in records if "validation/nelbo" in r}
            if not value:
                raise ConfigError(
                    f"{os.fspath(path)} has no validation in metrics.jsonl; allowed: folders of "
                    "runs that were validated"
                )
            values.append(value)
        steps = sorted(set.intersection(*(set(value) for value in values)))
        if not steps:
            raise ConfigError(
                f"the runs of {label} were validated at different steps; allowed: runs with a "
                "validated step in common"
            )
        curves[label] = np.asarray(steps), np.array([[v[s] for s in steps] for v in values])
    return curves


def summary(curves: Curves) -> list[str]:
    """A line per group with its last values."""
    return [
        f"{label}: {values[:, -1].mean():.2f} nats at step {steps[-1]:,}, from "
        f"{values[:, -1].min():.2f} to {values[:, -1].max():.2f} over {len(values)} run(s)"
        for label, (steps, values) in curves.items()
    ]


def draw_comparison(curves: Curves, title: str, path: str) -> None:
    """Draws the result of `read_curves` to the file `path`."""
    with drawing(path, 7, 4) as figure:
        axes = figure.subplots()
        for label, (steps, values) in curves.items():
            (line,) = axes.plot(steps, values.mean(0), marker=".", label=f"{label} ({len(values)})")
            lowest, highest = values.min(0), values.max(0)
            axes.fill_between(steps, lowest, highest, color=line.get_color(), alpha=0.2)
        axes.set(xlabel="step", ylabel="validation NELBO, nats per image", title=title)
        axes.legend()
