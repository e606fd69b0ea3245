"""The validation of a run: the NELBO of the test split, and how far batch norm has drifted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jax.sharding import Mesh

from nvae_jax.config.run import RunConfig
from nvae_jax.data.sources import Dataset
from nvae_jax.evaluation import likelihood
from nvae_jax.evaluation.batch_statistics import BatchStatistics
from nvae_jax.evaluation.inputs import fixed_split

BATCH = "batch_statistics_nelbo"
DRIFT = "batch_norm_drift"
LARGE = 0.1  # of the NELBO: a drift to warn of


def make_validation(
    run: RunConfig, dataset: Dataset, batch_size: int, mesh: Mesh
) -> Callable[[Any], dict[str, Any]]:
    """A function from a model's variables to means over the whole test split, one draw per image.

    Args:
      run: what is trained, and how it is validated.
      dataset: its data.
      batch_size: images at a time, over all devices.
      mesh: the devices.

    Returns: the function. Beside what `likelihood.make_validation` returns, if that is a bound, it
      has the NELBO of the first `drift_batches` batches by their own batch-norm statistics, and how
      much more it is by the statistics that validation uses.
    """
    training = run.training
    has_posterior = run.objective.has_posterior
    means = likelihood.make_validation(run.model, dataset.test, batch_size, mesh, has_posterior)
    by_batch = BatchStatistics(run.model, batch_size, mesh, has_posterior)
    train = fixed_split(dataset, "train")
    few = training.drift_batches

    def validate(variables: Any) -> dict[str, Any]:
        if not variables["batch_stats"]:
            return means(variables)
        if training.eval_statistics == "training":
            statistics = by_batch.updated(variables, train, training.recalibration_batches)
            variables = {**variables, "batch_stats": statistics}
        found: dict[str, Any] = means(variables)
        if few and run.has_bound:
            theirs = by_batch.nelbo(variables, dataset.test, few)
            ours = means(variables, few * batch_size)["nelbo"]
            found |= {BATCH: theirs, DRIFT: ours - theirs}
        return found

    return validate


def drift_note(means: Mapping[str, Any]) -> str:
    """A warning for the line about a validation, if batch norm has drifted far; else nothing."""
    drift = float(means.get(DRIFT, 0))
    if drift <= LARGE * abs(float(means.get(BATCH, 0))):
        return ""
    return (
        f"\n  BATCH NORM HAS DRIFTED: by batches' own statistics, the NELBO is {drift:.1f} nats "
        "lower. What helps: a larger batch, a lower --config.training.learning_rate, or "
        "--config.training.eval_statistics=training"
    )
