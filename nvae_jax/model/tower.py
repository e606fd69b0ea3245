"""What both towers are made of: cells, and groups of them over a scale."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nvae_jax.model.architecture import ModelConfig
from nvae_jax.model.cells import Cell, Resize


def make_cell(
    config: ModelConfig, operations: tuple[str, ...], resize: Resize = "same", **options: Any
) -> nn.Module:
    """A cell of a model; recomputed in the backward pass when `config.remat` is "cell"."""
    cell = nn.remat(Cell, static_argnums=(2,)) if config.remat == "cell" else Cell
    dtype = jnp.dtype(config.dtype)
    return cell(operations, resize, config.squeeze_excite, dtype, **options)


def scan_groups(config: ModelConfig, group: type[nn.Module], length: int) -> Any:
    """A class for `length` groups of one scale: a loop over parameters stacked on a leading axis.

    A group is called with the features to carry on, its own inputs and `train`; the loop takes
    inputs with a leading axis of groups. `config.unroll` decides whether the compiled program has a
    loop: on CPU the gradient of a convolution is many times slower inside one.
    """
    unroll = jax.default_backend() == "cpu" if config.unroll is None else config.unroll
    if config.remat == "group":
        # A loop keeps the compiler from merging the second computation with the first by itself.
        group = nn.remat(group, static_argnums=(3,), prevent_cse=unroll)
    return nn.scan(
        group,
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast),
        length=length,
        unroll=0 if unroll else 1,  # 0: no loop, not even for one group
    )
