"""Building blocks of both towers: cells, and the loop over the groups of a scale."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nvae_jax.model.architecture import ModelConfig
from nvae_jax.model.cells import Cell, Resize
from nvae_jax.model.kernels.batch_norm import STATISTICS
from nvae_jax.model.kernels.platform import compiled_platform
from nvae_jax.model.vae import VAEConfig

GROUP_INPUT = "group_input"  # the name of a group's input features to checkpoint policies

# Which arrays of a cell or a group the forward pass keeps for the backward pass, by
# `ModelConfig.remat`. Batch statistics are small, and recomputing them would cost a pass over the
# features and an exchange between devices.
_keep_statistics = jax.checkpoint_policies.save_only_these_names(STATISTICS)
GROUP_POLICIES = {
    "group": _keep_statistics,
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[STATISTICS],
        names_which_can_be_offloaded=[GROUP_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def make_cell(
    config: ModelConfig,
    operations: tuple[str, ...],
    resize: Resize = "same",
    in_group: bool = False,
    **options: Any,
) -> nn.Module:
    """Makes a cell of a model.

    The backward pass recomputes the cell by itself, unless `config.remat` is "none" or the cell is
    part of a group that is recomputed as a whole.

    Args:
      config: of the model.
      operations: names from `OPERATIONS`.
      resize: how the cell changes the resolution.
      in_group: whether the cell is part of a group that `scan_groups` runs.
      **options: of a Flax module, such as `name`.
    """
    cell = Cell
    if config.remat == "cell" or (config.remat in GROUP_POLICIES and not in_group):
        cell = nn.remat(Cell, policy=_keep_statistics, static_argnums=(2,))
    dtype = jnp.dtype(config.dtype)
    return cell(operations, resize, config.squeeze_excite, dtype, **options)


def loop_unroll(config: VAEConfig) -> int:
    """The argument `unroll` of a scan: 0 for no loop in the compiled program, 1 for a loop.

    If `config.unroll` is None there is a loop except on CPU, where the gradient of a convolution is
    many times slower inside a loop.
    """
    unrolled = compiled_platform() == "cpu" if config.unroll is None else config.unroll
    return 0 if unrolled else 1  # True would leave a loop of length 1 for a single group


def scan_groups(config: ModelConfig, group: type[nn.Module], length: int) -> Any:
    """Makes the module class that runs all groups of a scale in a loop.

    Args:
      config: of the model.
      group: a module class, called with the carried features (B, H, W, C), a tree of inputs per
        group and `train`; returns the new features and a tree of outputs.
      length: the number of groups.

    Returns: a class with the arguments of `group`, whose inputs, outputs, `params` and
      `batch_stats` have a leading axis of `length`.
    """
    unroll = loop_unroll(config)
    if config.remat in GROUP_POLICIES:
        # Inside a loop, XLA cannot merge the recomputation with the forward pass in any case.
        policy = GROUP_POLICIES[config.remat]
        group = nn.remat(group, policy=policy, static_argnums=(3,), prevent_cse=unroll == 0)
    return nn.scan(
        group,
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast),
        length=length,
        unroll=unroll,
    )
