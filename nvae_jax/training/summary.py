"""What a run has become, once all of its steps are done: its curves, and a few lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nvae_jax.config.run import RunConfig
from nvae_jax.data.baselines import independent_pixels
from nvae_jax.data.sources import Dataset
from nvae_jax.evaluation.pictures import draw_curves
from nvae_jax.training.criterion import Criterion
from nvae_jax.workdir import Workdir


def summarize(workdir: Workdir, run: RunConfig, dataset: Dataset, last: Mapping[str, Any]) -> str:
    """Draws the curves of a run, and returns what its log says at the end.

    Args:
      workdir: the run's folder.
      run: the run.
      dataset: its data.
      last: the record of the last validation.
    """
    criterion = Criterion.of(run)
    baseline = independent_pixels(dataset, run.model.image) if criterion.is_bound else None
    records = workdir.records.read_metrics()
    curves = draw_curves(records, baseline, dataset.name, criterion.name, criterion.label)
    workdir.save_picture("curves", curves[None])
    value = criterion.full(last[f"validation/{criterion.name}"])
    return (
        f"done, {last['step']:,} steps\n"
        f"  validation {criterion.title:<8} {value}\n"
        + ("" if baseline is None else f"  independent pixels  {criterion.full(baseline)}\n")
        + f"  pictures            {workdir.path / 'pictures'}\n"
        f"  checkpoints         {workdir.path / 'checkpoints'}"
    )
