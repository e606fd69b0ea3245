"""The negative ELBO of a whole split."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from nvae_jax.data.loader import eval_batches
from nvae_jax.data.sources import Dataset
from nvae_jax.data.transforms import prepare_eval
from nvae_jax.model.architecture import ModelConfig
from nvae_jax.model.distributions import log_likelihood
from nvae_jax.model.nvae import NVAE
from nvae_jax.parallel import batch_sharding, replicated, shard_batch
from nvae_jax.processes import compiled_together


def make_validation(
    config: ModelConfig, dataset: Dataset, batch_size: int, mesh: Mesh
) -> Callable[[Any], dict[str, np.ndarray]]:
    """A function from a model's variables to means over the whole test split, one draw an image.

    The split, its binarisation and the latents' noise are the same at every call; the last batch,
    filled up, counts by its real images alone.

    Args:
      config: of the model.
      dataset: whose test split is scored.
      batch_size: images at a time, over all devices.
      mesh: the devices.

    Returns: of the function: `nelbo`, `reconstruction` and `kl` in nats an image, and `group_kl`
      (groups,), top-down.
    """
    model = NVAE(config)

    def sums(variables: Any, batch: dict[str, Array], number: Array) -> dict[str, Array]:
        x = prepare_eval(
            batch["image"],
            batch["index"],
            binarize=dataset.binarize,
            num_bits=config.num_bits,
        )
        key = jax.random.fold_in(jax.random.key(0), number)
        output: Any = model.apply(variables, x, train=False, rngs={"sample": key})
        mask = batch["mask"]
        return {
            "count": mask.sum(),
            "reconstruction": -(mask * log_likelihood(config, output.logits, x)).sum(),
            "group_kl": mask @ output.kl,
        }

    shardings = (None, batch_sharding(mesh), None)
    sums = compiled_together(
        jax.jit(sums, in_shardings=shardings, out_shardings=replicated(mesh)), "validation"
    )

    def validate(variables: Any) -> dict[str, np.ndarray]:
        batches = eval_batches(dataset.test, batch_size, jax.process_index(), jax.process_count())
        parts = [
            sums(variables, shard_batch(mesh, batch), jnp.asarray(number))
            for number, batch in enumerate(batches)
        ]
        totals = jax.tree.map(lambda *x: np.sum(jax.device_get(x), 0), *parts)
        count = totals.pop("count")
        means = {name: total / count for name, total in totals.items()}
        means["kl"] = means["group_kl"].sum()
        return means | {"nelbo": means["reconstruction"] + means["kl"]}

    return validate
