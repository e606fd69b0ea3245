"""What both towers are made of: cells, and groups of them over a scale."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nvae_jax.model.architecture import ModelConfig
from nvae_jax.model.cells import Cell, Resize
from nvae_jax.model.kernels.batch_norm import STATISTICS
from nvae_jax.model.kernels.platform import compiled_platform

GROUP_INPUT = "group_input"  # the features that a group starts from

# What the forward pass keeps of a cell or a group for the backward pass, by `ModelConfig.remat`.
# Statistics take no memory to speak of, and computing them again would cost a pass over the
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
    """A cell of a model, as part of a group or on its own.

    It is recomputed in the backward pass by itself, unless `config.remat` is "none" or the cell is
    part of a group that is recomputed as a whole.
    """
    cell = Cell
    if config.remat == "cell" or (config.remat in GROUP_POLICIES and not in_group):
        cell = nn.remat(Cell, policy=_keep_statistics, static_argnums=(2,))
    dtype = jnp.dtype(config.dtype)
    return cell(operations, resize, config.squeeze_excite, dtype, **options)


def loop_unroll(config: ModelConfig) -> int:
    """The argument `unroll` of a scan: 0, no loop in the compiled program, or 1.

    `config.unroll` decides; by default there is no loop on CPU, where the gradient of a convolution
    is many times slower inside one.
    """
    unrolled = compiled_platform() == "cpu" if config.unroll is None else config.unroll
    return 0 if unrolled else 1  # True would leave a loop of length 1 where there is one group


def scan_groups(config: ModelConfig, group: type[nn.Module], length: int) -> Any:
    """A class for `length` groups of one scale: a loop over parameters stacked on a leading axis.

    A group is called with the features to carry on, its own inputs and `train`; the loop takes
    inputs with a leading axis of groups.
    """
    unroll = loop_unroll(config)
    if config.remat in GROUP_POLICIES:
        # A loop keeps the compiler from merging the second computation with the first by itself.
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
