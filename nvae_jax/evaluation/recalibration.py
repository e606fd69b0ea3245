"""Batch-norm statistics other than the running ones.

Those of samples are what the decoder sees when it samples, not when it encodes; those of training
images are the evaluated parameters' own.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from nvae_jax.errors import reading
from nvae_jax.evaluation.batch_statistics import BatchStatistics
from nvae_jax.evaluation.inputs import fixed_split
from nvae_jax.evaluation.trained import TrainedModel
from nvae_jax.model import VAEConfig
from nvae_jax.model.families import make_network
from nvae_jax.parallel import replicated

BATCHES, BATCH_SIZE = 500, 16  # of the original (NVAE, §4.2)
IMAGE_BATCHES = 100


def recalibrate(
    model: TrainedModel,
    temperatures: np.ndarray,
    batches: int = BATCHES,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> Any:
    """Moves the running statistics to those of prior samples at a temperature (NVAE, §4.2).

    Every batch of samples in training mode enters the running averages with its usual weight; only
    the decoder's statistics change. All devices compute the same.

    Args:
      model: the model whose statistics are the start.
      temperatures: (groups,), top-down.
      batches: the number of batches.
      batch_size: samples per batch.
      seed: seeds the samples.

    Returns: `batch_stats`, like the model's.

    Raises:
      FloatingPointError: they are not finite.
    """
    step = model.compile(_update(model.config, batch_size))
    batch_stats = model.variables["batch_stats"]
    for number in range(batches):
        batch_stats = step(
            batch_stats, model.variables["params"], np.uint32(seed), np.uint32(number), temperatures
        )
        if (number + 1) % 100 == 0:
            jax.block_until_ready(batch_stats)
            model.log(f"recalibration: {number + 1:,}/{batches:,} batches")
    return _finite(batch_stats)


def _finite(batch_stats: Any) -> Any:
    broken = [
        ".".join(path)
        for path, x in flatten_dict(batch_stats).items()
        if not np.isfinite(np.asarray(x)).all()
    ]
    if broken:
        raise FloatingPointError(
            f"recalibrated statistics are not finite in {len(broken)} layers, {broken[0]} among "
            "them; a lower --temperature, or no --recalibrate, may do"
        )
    return batch_stats


@functools.cache
def _update(config: VAEConfig, batch_size: int) -> Callable[..., Any]:
    network = make_network(config)

    def update(
        batch_stats: Any, params: Any, seed: Array, number: Array, temperatures: Array
    ) -> Any:
        _, updated = network.apply(
            {"params": params, "batch_stats": batch_stats},
            batch_size,
            temperatures,
            train=True,
            method="sample_prior",
            rngs={"sample": jax.random.fold_in(jax.random.key(seed), number)},
            mutable=["batch_stats"],
        )
        return {**batch_stats, **updated["batch_stats"]}

    return update


def recalibrated(
    model: TrainedModel,
    temperatures: np.ndarray,
    batches: int = BATCHES,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> TrainedModel:
    """The model with recalibrated statistics, which are kept in its work directory and used again.

    `recalibrated/step_<step>_<digest>.npz` holds them with their provenance: the step, the
    arguments, all temperatures.

    Arguments and errors are those of `recalibrate`. A model without batch norm comes back as it is.
    """
    arguments = {
        "temperatures": [round(float(t), 6) for t in temperatures],
        "batches": batches,
        "batch_size": batch_size,
        "seed": seed,
    }
    return _kept(
        model, arguments, lambda: recalibrate(model, temperatures, batches, batch_size, seed)
    )


def recalibrated_on_images(
    model: TrainedModel, batches: int = IMAGE_BATCHES, batch_size: int = 64, seed: int = 0
) -> TrainedModel:
    """The model with statistics of training images, kept and used again as by `recalibrated`.

    Where parameters are averaged, the running statistics are those of other parameters.

    Args:
      model: the model whose statistics are the start; its data has to be there.
      batches: the number of batches, each of which enters with the usual weight.
      batch_size: images per batch on each device.
      seed: of the choice of images.

    Raises:
      ConfigError: the data is missing or broken.
      FloatingPointError: the statistics are not finite.
    """
    arguments = {"images": "train", "batches": batches, "batch_size": batch_size, "seed": seed}

    def compute() -> Any:
        statistics = BatchStatistics(model.config, batch_size * model.mesh.size, model.mesh)
        train = fixed_split(model.dataset, "train")
        return _finite(statistics.updated(model.variables, train, batches, seed))

    return _kept(model, arguments, compute)


def _kept(
    model: TrainedModel, arguments: Mapping[str, Any], compute: Callable[[], Any]
) -> TrainedModel:
    """The model with other statistics, from its folder, or computed and written there."""
    if not model.variables["batch_stats"]:
        return model
    provenance = json.dumps({"step": model.step} | dict(arguments))
    digest = hashlib.sha256(provenance.encode()).hexdigest()[:8]
    name = f"recalibrated/step_{model.step}_{digest}.npz"
    path = model.workdir.results / name
    if path.exists():
        broken = (ValueError, EOFError, zipfile.BadZipFile)
        with reading("recalibrated statistics", path, "a whole file, or none", *broken):
            arrays = dict(np.load(io.BytesIO(path.read_bytes())))
        del arrays["provenance"]
        model.log(f"recalibrated statistics from {path}")
        batch_stats = jax.device_put(unflatten_dict(arrays, sep="/"), replicated(model.mesh))
    else:
        batch_stats = compute()
        file = io.BytesIO()
        np.savez(file, provenance=np.asarray(provenance), **flatten_dict(batch_stats, sep="/"))
        model.workdir.write(name, file.getvalue())
    return dataclasses.replace(model, variables={**model.variables, "batch_stats": batch_stats})
