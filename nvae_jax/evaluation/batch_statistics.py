"""Batch norm by the statistics of batches: how far the running ones have drifted, and new ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from nvae_jax.compilation import compiled_together, jit_on
from nvae_jax.data.sources import Source
from nvae_jax.evaluation.batches import on_pixels
from nvae_jax.model.distributions import reconstruction_error
from nvae_jax.model.families import make_network
from nvae_jax.model.vae import VAEConfig, no_noise
from nvae_jax.parallel import batch_sharding, replicated, shard_batch


class BatchStatistics:
    """A model that normalises images by the statistics of their batch, as in training.

    Args:
      config: the model's configuration.
      batch_size: images per batch, over all devices.
      mesh: the devices.
      has_posterior: whether codes are drawn, see `Objective`; else they are the means.
    """

    def __init__(self, config: VAEConfig, batch_size: int, mesh: Mesh, has_posterior: bool = True):
        self._batch_size, self._mesh = batch_size, mesh
        model = make_network(config)

        def terms(variables: Any, x: Array, index: Array, number: Array) -> tuple[Array, Any]:
            del index
            key = jax.random.fold_in(jax.random.key(0), number)
            noise = None if has_posterior else no_noise(config, len(x))
            output, updated = model.apply(
                variables, x, True, noise, rngs={"sample": key}, mutable=["batch_stats"]
            )
            nelbo = output.kl.sum(-1) + reconstruction_error(config, output, x)
            return nelbo.mean(), updated["batch_stats"]

        self._terms = compiled_together(
            jit_on(
                mesh,
                on_pixels(config.image, terms),
                in_shardings=(None, batch_sharding(mesh), None),
                out_shardings=replicated(mesh),
            ),
            "batch statistics",
        )

    def nelbo(self, variables: Any, source: Source, batches: int) -> float:
        """The mean NELBO in nats per image of the first batches of a split, one draw per image.

        Args:
          variables: the model's.
          source: the split.
          batches: how many batches.
        """
        number = min(batches * self._batch_size, len(source))
        values = [
            self._terms(variables, batch, jnp.asarray(i))[0]
            for i, batch in enumerate(self._batches(source, np.arange(number)))
        ]
        return float(np.mean([np.asarray(value) for value in values]))

    def updated(self, variables: Any, source: Source, batches: int, seed: int = 0) -> Any:
        """The running statistics after batches of random images, each with its usual weight.

        Parameters stay as they are, so that these are the statistics of the parameters that
        evaluation uses, of which averages are no batch's that was trained on.

        Args:
          variables: the model's.
          source: the split.
          batches: how many batches; after 50, little is left of the statistics from before.
          seed: of the choice of images.
        """
        rng = np.random.default_rng(seed)
        index = rng.integers(len(source), size=batches * self._batch_size)
        for i, batch in enumerate(self._batches(source, index)):
            _, batch_stats = self._terms(variables, batch, jnp.asarray(i))
            variables = {**variables, "batch_stats": batch_stats}
        return variables["batch_stats"]

    def _batches(self, source: Source, index: np.ndarray) -> Iterator[Any]:
        from nvae_jax.data.loader import eval_batches

        processes = jax.process_index(), jax.process_count()
        for batch in eval_batches(source, self._batch_size, *processes, index=index):
            yield shard_batch(self._mesh, batch)
