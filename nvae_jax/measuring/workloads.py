"""What the benchmark measures of a configuration: the functions that real runs are made of."""

from __future__ import annotations

import contextlib
import functools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from nvae_jax.compilation import jit_on
from nvae_jax.config.training import TrainingConfig
from nvae_jax.evaluation.likelihood import make_image_likelihood, make_validation_terms
from nvae_jax.evaluation.sampling import make_draw, make_sampler
from nvae_jax.measuring.compiled import compile_for
from nvae_jax.measuring.timing import Row, images_per_second, measure
from nvae_jax.model.families import fold
from nvae_jax.model.vae import VAEConfig
from nvae_jax.objectives.base import Objective
from nvae_jax.objectives.table import ELBO
from nvae_jax.parallel import batch_sharding, replicated, shard_batch
from nvae_jax.training.program import make_program
from nvae_jax.training.state import TrainState

STEPS_PER_EPOCH = 1000  # only a number in the schedule
DRAWS = 8  # importance weights per image


class Workload:
    """A configuration on a mesh, with a state that is initialised when it is first used.

    Args:
      model: the network.
      training: how it is trained.
      mesh: the devices.
      repeats: measurements of each row.
      batch: as the loader makes it; None: images of random bytes, the same every time.
      objective: what is minimised.
    """

    def __init__(
        self,
        model: VAEConfig,
        training: TrainingConfig,
        mesh: Mesh,
        repeats: int,
        batch: Mapping[str, np.ndarray] | None = None,
        objective: Objective = ELBO,
    ):
        self.model, self.training, self.mesh, self.repeats = model, training, mesh, repeats
        self.objective = objective
        self.flip = not model.image.binarize
        self.program = make_program(
            model, training, STEPS_PER_EPOCH, mesh, flip=self.flip, objective=objective
        )
        self.batch = shard_batch(mesh, dict(batch or random_batch(self.program.batch)))

    @functools.cached_property
    def state(self) -> TrainState:
        """The state after the last update."""
        return self.program.init(self.batch, np.uint32(self.training.seed))


def random_batch(shapes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A batch of the shapes of `Program.batch`: random bytes, numbered from 0, of epoch 0."""
    size = shapes["index"].shape[0]
    image = np.random.default_rng(0).integers(0, 256, shapes["image"].shape, np.uint8)
    index = np.arange(size, dtype=np.int32)
    return {"image": image, "index": index, "epoch": np.zeros(size, np.int32)}


def sample(work: Workload, num_images: int) -> list[Row]:
    """Drawing `num_images` samples from the prior at once, on one device.

    As `--mode sample` draws them, with folded batch norms, and as the pictures of training are
    drawn, from the variables as they are.
    """
    device = work.mesh.devices.flat[0]
    variables, key, index, seed, temperatures = jax.device_put(
        (
            work.state.eval_variables,
            jax.random.key(0),
            np.arange(num_images, dtype=np.uint32),
            np.uint32(0),
            np.ones(work.model.total_groups, np.float32),
        ),
        device,
    )
    folded = _fold(work)(variables), index, seed, temperatures
    trained = variables, key, temperatures
    draw = compile_for(jit_on(work.mesh, make_draw(work.model)), *folded)
    sampler = compile_for(make_sampler(work.model, num_images), *trained)
    calls = {"batch": lambda: draw.call(*folded), "as trained": lambda: sampler.call(*trained)}
    counts = {"batch": draw.counts, "as trained": sampler.counts}
    seconds = measure(calls, work.repeats)
    return [Row("sample", name, seconds[name], num_images, **counts[name]) for name in calls]


def _fold(work: Workload) -> Callable[[Any], Any]:
    return jax.jit(functools.partial(fold, work.model))


def evaluate(work: Workload) -> list[Row]:
    """Validation of a batch, and importance weights of its images."""
    images, size = work.training.batch_size, work.mesh.size
    on_batch = batch_sharding(work.mesh)
    batch = {name: work.batch[name] for name in ("image", "index")}
    x = jax.device_put(np.asarray(batch["image"], np.float32) / 255, on_batch)
    if work.model.image.binarize:
        x = x.round()
    variables, number = work.state.eval_variables, jnp.asarray(0)
    folded = _fold(work)(variables)
    terms = make_validation_terms(work.model, work.mesh)
    likelihood = jit_on(
        work.mesh, make_image_likelihood(work.model, (DRAWS,)), out_shardings=replicated(work.mesh)
    )
    nelbo = compile_for(terms, variables, batch, number, devices=size)
    weights = compile_for(likelihood, folded, x, batch["index"], devices=size)
    name = f"importance weights, {DRAWS} draws"
    calls = {
        "NELBO": lambda: nelbo.call(variables, batch, number),
        name: lambda: weights.call(folded, x, batch["index"]),
    }
    seconds = measure(calls, work.repeats)
    return [
        Row("evaluate", "NELBO", seconds["NELBO"], images, **nelbo.counts),
        Row("evaluate", name, seconds[name], images, DRAWS, memory=weights.memory),
    ]


def compilation(work: Workload) -> list[Row]:
    """Tracing and compiling what a run starts with, with an empty and a full persistent cache."""
    rows = []
    functions = {
        "init": (work.program.init, (work.program.batch, np.uint32(0))),
        "update": (work.program.update, (work.program.state, work.program.batch)),
    }
    with _fresh_cache():
        for cache in ("empty", "full"):
            jax.clear_caches()
            for name, (function, arguments) in functions.items():
                start = time.perf_counter()
                lowered = function.trace(*arguments).lower()
                middle = time.perf_counter()
                lowered.compile()
                end = time.perf_counter()
                rows.append(Row("compile", f"{name}: trace, {cache} cache", [middle - start]))
                rows.append(Row("compile", f"{name}: compile, {cache} cache", [end - middle]))
    return rows


@contextlib.contextmanager
def _fresh_cache() -> Iterator[None]:
    """JAX's persistent cache in a new folder that stores all programs and is removed at the end."""
    changed = {
        "jax_compilation_cache_dir": "",
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in changed}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name, value in (changed | {"jax_compilation_cache_dir": folder}).items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()
            yield
        finally:
            for name, value in before.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()


def load(
    dataset: Any, loading: Any, batch_size: int, seed: int, repeats: int, seconds: float = 2.0
) -> list[Row]:
    """Reading a batch with the loader of a run; each measurement lasts `seconds`."""
    from nvae_jax.data.loader import train_batches

    batches = train_batches(dataset, batch_size, seed, loading=loading)
    with contextlib.closing(batches):
        rates = [images_per_second(batches, batch_size, seconds) for _ in range(repeats)]
    return [Row("load", "batch", [batch_size / rate for rate in rates], batch_size)]
