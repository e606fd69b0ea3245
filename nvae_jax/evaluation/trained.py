"""A trained model, taken from its work directory alone, on the devices at hand."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from nvae_jax.compilation import jit_on
from nvae_jax.errors import require
from nvae_jax.evaluation.batches import Compute, Progress, on_pixels, over_arrays, over_split
from nvae_jax.model import VAEConfig, variable_shapes
from nvae_jax.model.families import fold
from nvae_jax.parallel import make_mesh, replicated

if TYPE_CHECKING:  # not needed by the compiled functions, which run with JAX and Flax alone
    from nvae_jax.config.run import RunConfig
    from nvae_jax.data.sources import Dataset, Source
    from nvae_jax.workdir import Workdir


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedModel:
    """What evaluation needs of a run.

    Attributes:
      workdir: the run's folder.
      run: the run's configuration.
      mesh: the devices.
      variables: `params` and `batch_stats` (the averaged ones where the run keeps them), on every
        device.
      step: the checkpoint's step.
      log: receives lines about the progress of long work.
    """

    workdir: Workdir
    run: RunConfig
    mesh: Mesh
    variables: dict[str, Any]
    step: int
    log: Callable[[str], None]

    @property
    def config(self) -> VAEConfig:
        """The model's configuration."""
        return self.run.model

    @functools.cached_property
    def dataset(self) -> Dataset:
        """The data that the model was trained on, opened on first use.

        Raises:
          ConfigError: the data is missing or broken.
        """
        return self.run.open_data(self.workdir.load_images())

    @functools.cached_property
    def folded(self) -> dict[str, Any]:
        """The variables that `fold` returns."""
        return self.compile(functools.partial(fold, self.config))(self.variables)

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A compiled `function`, whose outputs every device has whole.

        A function that was compiled before is not compiled again.
        """
        return jit_on(self.mesh, function, out_shardings=replicated(self.mesh))

    def progress(self, what: str, done: int = 0) -> Progress:
        """Lines about long work."""
        return Progress(self.log, what, done)

    def over_split(
        self,
        function: Callable[..., Any],
        source: Source,
        index: np.ndarray,
        batch_size: int,
        progress: Progress,
    ) -> Iterator[tuple[int, Any]]:
        """Runs a function over examples of a split, see `batches.over_split`.

        Args:
          function: `(folded variables, x, index)`, with pixels x (B, H, W, C) in [0, 1].
          source: the split.
          index: (N,) positions of the examples in it.
          batch_size: examples at a time on each device.
          progress: reports how much of the work is done.
        """
        compute = self._compute(on_pixels(self.config.image, function))
        size = batch_size * self.mesh.size
        return over_split(self.mesh, compute, source, index, size, progress)

    def over_arrays(
        self,
        function: Callable[..., Any],
        arrays: Any,
        batch_size: int,
        what: str,
        constants: tuple[Any, ...] = (),
        done: int = 0,
    ) -> Iterator[tuple[int, Any]]:
        """Runs a function over the rows of arrays, see `batches.over_arrays`.

        Args:
          function: `(folded variables, batch, *constants)`.
          arrays: a tree of NumPy arrays (N, …).
          batch_size: rows at a time on each device.
          what: what the rows are, for lines about progress.
          constants: further arguments, the same for all batches.
          done: rows that were finished before.
        """
        compute = self._compute(function, constants)
        progress = self.progress(what, done)
        return over_arrays(self.mesh, compute, arrays, batch_size * self.mesh.size, progress)

    def map(
        self,
        function: Callable[..., Any],
        arrays: Any,
        batch_size: int,
        what: str,
        constants: tuple[Any, ...] = (),
    ) -> Any:
        """As `over_arrays`, but returns the outputs for all rows, in a tree of NumPy arrays."""
        number = len(jax.tree.leaves(arrays)[0])
        # A power of two, so that few sizes are compiled for any numbers of rows.
        enough = 2 ** math.ceil(math.log2(math.ceil(number / self.mesh.size)))
        batch_size = min(batch_size, enough)
        batches = self.over_arrays(function, arrays, batch_size, what, constants)
        outputs = [outputs for _, outputs in batches]
        return jax.tree.map(lambda *x: np.concatenate(x), *outputs)

    def _compute(self, function: Callable[..., Any], constants: tuple[Any, ...] = ()) -> Compute:
        compiled = self.compile(function)
        return lambda first, batch: compiled(self.folded, batch, *constants)


def open_run(
    path: str | os.PathLike[str],
    mesh: Mesh | None = None,
    places: Mapping[str, str | None] | None = None,
    results: str | os.PathLike[str] | None = None,
    log: Callable[[str], None] | None = None,
) -> TrainedModel:
    """The model of the latest checkpoint in a work directory; its data need not be there.

    A checkpoint that is damaged is passed over, and the log says so.

    Args:
      path: the work directory.
      mesh: the devices; None: all there are.
      places: where the run's data is now, see `RunConfig.with_data_at`.
      results: where modes write; None: in `path`.
      log: receives lines about the progress of long work; None: the run's log.

    Raises:
      ConfigError: `path` is not the folder of a run, holds no checkpoint, or a configuration that
        does not describe what the checkpoint holds, or the checkpoint is not finite.
    """
    from nvae_jax.config.run import load_run
    from nvae_jax.workdir import Workdir
    from nvae_jax.workdir.integrity import DamagedError

    workdir = Workdir(path, results=results)
    log = log or workdir.log
    run = load_run(workdir).with_data_at(places or {})
    mesh = make_mesh() if mesh is None else mesh
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)),
        variable_shapes(run.model),
    )
    # Averages, where there are any, are what training validates.
    params = "params" if run.training.ema_decay is None else "ema_params"
    averaged = run.training.eval_statistics == "averaged"
    batch_stats = "ema_batch_stats" if averaged else "batch_stats"
    wanted = {params: shapes["params"], batch_stats: shapes.get("batch_stats", {})}
    try:
        (step, state), errors = workdir.checkpoints.newest(
            lambda step: (step, workdir.checkpoints.restore(wanted, step, partial=True)[0]),
            DamagedError,
        )
    finally:
        workdir.checkpoints.close()
    for error in errors.values():
        log(f"{error}; step {step:,} is used")
    return TrainedModel(
        workdir=workdir,
        run=run,
        mesh=mesh,
        variables={"params": state[params], "batch_stats": state[batch_stats]},
        step=step,
        log=log,
    )


def image_keys(seed: int | Array, index: Array | np.ndarray, draw: int | Array = 0) -> Array:
    """One PRNG key per image, (B,), from the seed, the image's number (B,) and the draw's number.

    An image's noise is thereby the same in any batch, on any device.
    """
    # The kind is named because others do not act per image under vmap.
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), draw)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def image_noise(config: VAEConfig, keys: Array, scale: float | Array = 1.0) -> list[Array]:
    """Standard-normal noise from one key per image (B,), times `scale`: (B, h, w, Z) per group."""
    parts = jax.vmap(lambda key: jax.random.split(key, config.total_groups))(keys)
    return [
        scale * jax.vmap(lambda key, shape=shape: jax.random.normal(key, shape))(parts[:, group])
        for group, shape in enumerate(config.latent_shapes)
    ]


def group_temperatures(config: VAEConfig, values: tuple[float, ...]) -> np.ndarray:
    """Temperatures (groups,), top-down, from one for all, one per scale or one per group.

    Raises:
      ConfigError: there is another number of values, or a negative one.
    """
    groups, scales = config.total_groups, len(config.groups_per_scale)
    numbers = scales_of_groups(config).tolist()
    lengths = {1: [0] * groups, scales: numbers, groups: list(range(groups))}
    allowed = f"1, {scales} (one per scale) or {groups} (one per group) numbers >= 0"
    fits = len(values) in lengths and all(0 <= v < math.inf for v in values)
    require("temperature", values, fits, allowed)
    return np.asarray([values[i] for i in lengths[len(values)]], np.float32)


def scales_of_groups(config: VAEConfig) -> np.ndarray:
    """The number of each group's scale, from the coarsest, (groups,)."""
    groups = config.groups_per_scale
    return np.repeat(np.arange(len(groups)), groups)
