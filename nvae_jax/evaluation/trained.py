"""A trained model, taken from its work directory alone, on the devices at hand."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import math
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from nvae_jax.config import from_mapping
from nvae_jax.model import ModelConfig, variable_shapes
from nvae_jax.model.inference import fold
from nvae_jax.options import require
from nvae_jax.parallel import jit_on, make_mesh, replicated, shard_batch

if TYPE_CHECKING:
    from nvae_jax.data.sources import Dataset
    from nvae_jax.workdir import Workdir

_LOG_SECONDS = 10.0  # between two lines about progress


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedModel:
    """What evaluation needs of a run.

    Attributes:
      workdir: the run's folder.
      config: of the model.
      dataset: that it was trained on.
      mesh: the devices.
      variables: `params` (the averaged ones where the run keeps them) and `batch_stats`, on every
        device.
      step: of the checkpoint.
    """

    workdir: Workdir
    config: ModelConfig
    dataset: Dataset
    mesh: Mesh
    variables: dict[str, Any]
    step: int

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A compiled `function`, whose outputs every device gets whole.

        The same function again is not compiled again.
        """
        return jit_on(self.mesh, function, out_shardings=replicated(self.mesh))

    @functools.cached_property
    def folded(self) -> dict[str, Any]:
        """The variables as a `FoldedNVAE` takes them."""
        return self.compile(functools.partial(fold, self.config))(self.variables)

    def in_batches(
        self,
        compiled: Callable[..., Any],
        number: int,
        batch_size: int,
        read: Callable[[np.ndarray], Any],
        what: str | None = None,
        start: int = 0,
        constants: tuple[Any, ...] = (),
    ) -> Iterator[tuple[int, Any]]:
        """Runs a compiled function over numbered items, a batch at a time.

        Every device always gets `batch_size` items, so how many devices there are does not change
        what one of them computes; the last batch is filled up with the last item. The next batch is
        read while the devices work.

        Args:
          compiled: of `compile`; called with `folded`, a batch, and the constants.
          number: how many items there are.
          batch_size: items at a time on each device.
          read: from item numbers (B,) to a batch, a tree of NumPy arrays (B, …).
          what: what the items are, for lines about progress; None: none.
          start: the first item that is wanted.
          constants: further arguments, the same for all batches.

        Yields: the number of the first item, and the outputs of the batch without its filling, as
          NumPy arrays.
        """
        devices = self.mesh.size
        share = batch_size * devices // jax.process_count()
        position = jax.process_index() * share + np.arange(share)
        previous: tuple[int, Any] | None = None
        compiled_at = logged = time.monotonic()

        def finish(first: int, outputs: Any) -> tuple[int, Any]:
            nonlocal compiled_at, logged
            count = min(batch_size * devices, number - first)
            arrays = jax.tree.map(lambda x: np.asarray(x)[:count], outputs)
            now, done = time.monotonic(), first - start
            if done == 0:
                compiled_at = now
            elif what and now - logged > _LOG_SECONDS and first + count < number:
                logged, rate = now, done / (now - compiled_at)
                left = datetime.timedelta(seconds=round((number - first - count) / rate))
                line = f"{first + count:,}/{number:,} {what}, {rate:.3g}/s, {left} left"
                self.workdir.log(line)
            return first, arrays

        for first in range(start, number, batch_size * devices):
            batch = shard_batch(self.mesh, read(np.minimum(first + position, number - 1)))
            running = first, compiled(self.folded, batch, *constants)
            if previous is not None:
                yield finish(*previous)
            previous = running
        if previous is not None:
            yield finish(*previous)

    def map(
        self,
        function: Callable[..., Any],
        arrays: Any,
        batch_size: int,
        what: str | None = None,
        constants: tuple[Any, ...] = (),
    ) -> Any:
        """Runs a function of `folded`, a batch and the constants over all of `arrays`.

        `arrays` is a tree of NumPy arrays (N, …).

        Returns: its outputs for all N, NumPy arrays in a tree of the same structure.
        """
        number = len(jax.tree.leaves(arrays)[0])
        batches = self.in_batches(
            self.compile(function),
            number,
            min(batch_size, math.ceil(number / self.mesh.size)),
            lambda index: jax.tree.map(lambda x: np.asarray(x)[index], arrays),
            what,
            constants=constants,
        )
        outputs = [outputs for _, outputs in batches]
        return jax.tree.map(lambda *x: np.concatenate(x), *outputs)


def open_run(path: str | os.PathLike[str], mesh: Mesh | None = None) -> TrainedModel:
    """The model of the latest checkpoint in a work directory.

    Args:
      path: the work directory.
      mesh: the devices; all there are, by default.

    Raises:
      FileNotFoundError: `path` is no work directory, or holds no checkpoint.
      ValueError: the configuration does not describe what the checkpoint holds.
    """
    # Not needed by the compiled functions, which run with JAX and Flax alone.
    from nvae_jax.data.sources import make_dataset
    from nvae_jax.workdir import Workdir

    workdir = Workdir(path)
    if not (workdir.path / "config.json").exists():
        raise FileNotFoundError(f"{workdir.path} is no work directory: it has no config.json")
    run = workdir.load_config()
    config = from_mapping(ModelConfig, run.model, "model")
    mesh = make_mesh() if mesh is None else mesh
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)),
        variable_shapes(config),
    )
    # Averaged parameters, where there are any, are those that training validates.
    params = "params" if run.training.get("ema_decay") is None else "ema_params"
    wanted = {params: shapes["params"], "batch_stats": shapes.get("batch_stats", {})}
    try:
        state, metadata = workdir.restore(wanted, partial=True)
    finally:
        workdir.close()
    return TrainedModel(
        workdir=workdir,
        config=config,
        dataset=make_dataset(**run.data),
        mesh=mesh,
        variables={"params": state[params], "batch_stats": state["batch_stats"]},
        step=int(metadata["step"]),
    )


def image_keys(seed: int | Array, index: Array | np.ndarray, draw: int | Array = 0) -> Array:
    """One PRNG key an image, (B,), by seed, number of the image (B,) and number of the draw alone.

    With it an image's noise is the same in any batch, on any device.
    """
    # The kind is named because others do not act per image under vmap.
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), draw)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def image_noise(config: ModelConfig, keys: Array, scale: float | Array = 1.0) -> list[Array]:
    """The draws that a model makes of a key (B,) an image, times `scale`: (B, h, w, Z) a group."""
    parts = jax.vmap(lambda key: jax.random.split(key, config.total_groups))(keys)
    return [
        scale * jax.vmap(lambda key, shape=shape: jax.random.normal(key, shape))(parts[:, group])
        for group, shape in enumerate(config.latent_shapes)
    ]


def group_temperatures(config: ModelConfig, values: tuple[float, ...]) -> np.ndarray:
    """Temperatures (groups,), top-down, from one for all, one a scale or one a group.

    Raises: ValueError if there are other numbers of them, or a negative one.
    """
    scales = [s for s, scale in enumerate(config.scales[::-1]) for _ in range(scale.groups)]
    lengths = {1: [0] * len(scales), config.num_scales: scales, len(scales): range(len(scales))}
    allowed = f"1, {config.num_scales} (a scale) or {len(scales)} (a group) numbers from 0 on"
    fits = len(values) in lengths and min(values) >= 0
    require("temperature", values, fits, allowed)
    return np.asarray([values[i] for i in lengths[len(values)]], np.float32)
