"""Runs in Python: `nvae_jax.load` and `nvae_jax.train`.

    import nvae_jax

    run = nvae_jax.load("runs/digits")
    images = run.sample(16, temperature=0.8)

Images go in as arrays or as Pillow's images, one or many, and come out as float32 in [0, 1],
without the model's border. All devices compute; a function is compiled on first use for a number of
images (rounded up to a power of two, at most `batch_size` per device) and kept. The modes of the
command line call the same methods.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping
from typing import Any

import jax

from nvae_jax.api.run import Run
from nvae_jax.compilation import keep_compiled_programs
from nvae_jax.config.run import RunConfig, load_run
from nvae_jax.evaluation.trained import open_run
from nvae_jax.evaluation.weights import read_weights
from nvae_jax.parallel import replicated
from nvae_jax.training import loop
from nvae_jax.workdir import Workdir

__all__ = ["Run", "load", "train"]

_LOGGER = logging.getLogger("nvae_jax")


def load(
    workdir: str | os.PathLike[str],
    *,
    places: Mapping[str, str | None] | None = None,
    results: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
) -> Run:
    """The trained model of a run, from its latest checkpoint; the data need not be there.

    Compiled programs are kept in the user's cache folder, unless JAX is set to keep them elsewhere.
    The progress of long work is logged to the logger `nvae_jax`, which
    `logging.basicConfig(level="INFO")` shows.

    Args:
      workdir: the folder of the run, on a disk or in a bucket.
      places: where the run's data is now, `path`, `data_dir` or `lmdb`, if it has moved.
      results: the folder for what is kept between calls (see `Run.sample`); None: `workdir`.
      weights: a safetensors file, as the mode `export` writes it, in place of the checkpoint's.

    Raises:
      ConfigError: `workdir` is not the folder of a run, or has no checkpoint that is whole and
        finite; or the weights are another model's.

    >>> run = nvae_jax.load("runs/digits")
    >>> run
    Run('digits', step 7: 4 groups of latents over 2 scales, images (28, 28, 1))
    """
    keep_compiled_programs()
    model = open_run(workdir, places=places, results=results, log=_LOGGER.info)
    if weights is not None:
        variables = jax.device_put(read_weights(model.config, weights), replicated(model.mesh))
        model = dataclasses.replace(model, variables=variables)
    return Run(model)


def train(
    config: str | os.PathLike[str] | Mapping[str, Any] | RunConfig | None,
    workdir: str | os.PathLike[str],
    *,
    accept_changes: bool = False,
) -> dict[str, float]:
    """Trains a run to its end, or the rest of it; the same as the command line does.

    Args:
      config: a configuration that comes with the package, by name ("digits"); a configuration's
        file, or a run's `config.json`; a `ConfigDict` or another mapping of sections; or a
        `RunConfig`. None: the saved one, of a run that exists.
      workdir: the run's folder, new or of the run to continue.
      accept_changes: whether a run may go on with other settings and images than before.

    Returns: the record of the last validation, with `validation/nelbo` in nats per image.

    Raises:
      ConfigError: the configuration is impossible, the data is missing or broken, or the folder
        is another run's.
      FloatingPointError: the run went back to its last checkpoint too often.

    >>> record = nvae_jax.train("digits", "runs/digits")  # doctest: +SKIP
    >>> record["validation/nelbo"]  # doctest: +SKIP
    275.71
    """
    keep_compiled_programs()
    if not isinstance(config, RunConfig):
        config = load_run(Workdir(workdir) if config is None else config)
    record = loop.train(config, workdir, accept_changes=accept_changes)
    assert record is not None  # nothing can preempt it
    return record
