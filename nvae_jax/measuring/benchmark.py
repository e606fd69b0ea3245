"""How fast a configuration runs on this machine, and which part of the machine's limits it reaches.

Nothing here is imported but JAX, Flax, optax and NumPy, unless images of a dataset are wanted.
"""

from __future__ import annotations

import contextlib
import datetime
import platform
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import flax
import jax
import optax

from nvae_jax.compilation import usable_cores
from nvae_jax.config.run import load_run
from nvae_jax.config.training import TrainingConfig
from nvae_jax.errors import require
from nvae_jax.measuring import step_split, workloads
from nvae_jax.measuring.benchmark_report import Benchmark
from nvae_jax.measuring.operations import measure_operations
from nvae_jax.measuring.roofline import measure_machine
from nvae_jax.measuring.timing import Row
from nvae_jax.model.architecture import ModelConfig
from nvae_jax.parallel import make_mesh

# In the order of measurement: the peak of the memory in use is the update's.
PARTS = ("train", "update", "sample", "evaluate", "compile", "load", "operations")


def with_data(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings; where they have no section of data, with one that fits the model."""
    model = settings.get("model", {})
    if "data" in settings or not isinstance(model, Mapping):
        return dict(settings)
    binarize = model.get("likelihood") == "bernoulli"
    data = {"name": "numpy_arrays", "path": "", "binarize": binarize}
    return {**settings, "data": data | {"border": model.get("border", 0)}}


def measure_run(
    name: str,
    settings: Mapping[str, Any],
    overrides: Mapping[str, Any],
    parts: Sequence[str],
    devices: Sequence[Any],
    repeats: int,
    num_images: int | None = None,
    real: bool = False,
) -> Benchmark:
    """Measures the parts of a benchmark; shows on stderr which one is being measured.

    Args:
      name: of the configuration, for the report.
      settings: the configuration, `overrides` included.
      overrides: the fields that were set on the command line, for the report.
      parts: as `parse_parts` returns them.
      devices: to run on.
      repeats: measurements of each row.
      num_images: to sample at once; None: as many as are in a batch.
      real: whether to train on a batch of the dataset; images of random bytes otherwise.

    Raises:
      ConfigError: the settings do not describe a run, or their dataset is not here.
    """
    run = load_run(with_data(settings))
    nvae: Any = run.model
    has_operations = "operations" not in parts or isinstance(nvae, ModelConfig)
    require("--what", "operations", has_operations, "with model.name = 'nvae' only")
    reads = real or "load" in parts
    require("--real or --what=load", reads, not reads or "data" in settings, "with a data section")
    model, training = run.model, run.training
    mesh = make_mesh(devices, training.parameter_shards)
    dataset = run.open_data() if reads else None
    batch = real_batch(dataset, run.loading, training) if real else None
    work = workloads.Workload(model, training, mesh, repeats, batch, run.objective)
    images = training.batch_size
    measurements = {
        "update": lambda: step_split.update(work),
        "train": lambda: step_split.train(work),
        "sample": lambda: workloads.sample(work, num_images or images),
        "evaluate": lambda: workloads.evaluate(work),
        "compile": lambda: workloads.compilation(work),
        "load": lambda: workloads.load(dataset, run.loading, images, training.seed, repeats),
        "operations": lambda: measure_operations(nvae, images // mesh.size, repeats),
    }
    rows: list[Row] = []
    for part in parts:
        print(f"measuring: {part}", file=sys.stderr, flush=True)
        rows += measurements[part]()
    # Last, because its arrays would count in the peak of the memory in use.
    machine = measure_machine(model.dtype, repeats)
    return Benchmark(environment(devices), name, dict(overrides), dict(settings), machine, rows)


def real_batch(dataset: Any, loading: Any, training: TrainingConfig) -> Any:
    """The first batch of a run."""
    from nvae_jax.data.loader import train_batches

    batches = train_batches(dataset, training.batch_size, training.seed, loading=loading)
    with contextlib.closing(batches):
        return next(batches)


def environment(devices: Sequence[Any]) -> dict[str, Any]:
    """Date, devices and versions."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "platform": devices[0].platform,
        "device_kind": devices[0].device_kind,
        "devices": len(devices),
        "cores": usable_cores(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
    }
