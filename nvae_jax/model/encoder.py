"""The bottom-up tower."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from nvae_jax.model.architecture import ModelConfig
from nvae_jax.model.cells import Cell, Resize
from nvae_jax.model.convolution import Conv


def make_cell(
    config: ModelConfig, operations: tuple[str, ...], resize: Resize = "same", **options: Any
) -> nn.Module:
    """A cell of a model; recomputed in the backward pass when `config.remat` is "cell"."""
    cell = nn.remat(Cell, static_argnums=(2,)) if config.remat == "cell" else Cell
    dtype = jnp.dtype(config.dtype)
    return cell(operations, resize, config.squeeze_excite, dtype, **options)


def scan_groups(config: ModelConfig, group: type[nn.Module], length: int, **axes: Any) -> Any:
    """A class for `length` groups of one scale: a loop over parameters stacked on a leading axis.

    `config.unroll` decides whether the compiled program has a loop. On CPU the gradient of a
    convolution is many times slower inside one.
    """
    if config.remat == "group":
        group = nn.remat(group, static_argnums=(3,), prevent_cse=False)
    unroll = jax.default_backend() == "cpu" if config.unroll is None else config.unroll
    return nn.scan(
        group,
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
        length=length,
        unroll=0 if unroll else 1,  # 0: no loop, not even for one group
        **axes,
    )


class EncoderGroup(nn.Module):
    """The cells of one group."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array, _: None, train: bool) -> tuple[Array, Array]:
        """(B, h, w, C) → the same shape, twice: to carry on, and to tap."""
        for i in range(self.config.encoder_cells):
            cell = make_cell(self.config, self.config.cells.encoder, name=f"cell_{i}")
            x = cell(x, train)
        return x, x


class Encoder(nn.Module):
    """From the image to features at every group."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, list[Array]]:
        """Runs the tower.

        Args:
          x: (B, H, W, C) in [-1, 1].
          train: normalise by the batch.

        Returns:
          top: (B, h, w, C_top) that the first group's posterior is read from.
          taps: one array (groups, B, h, w, C) a scale, finest first, groups bottom-up.
        """
        config = self.config
        dtype = jnp.dtype(config.dtype)
        x = Conv(config.encoder_channels, 3, dtype=dtype, name="stem")(x)
        for block in range(config.num_blocks):
            for i in range(config.preprocess_cells):
                resize: Resize = "down" if i == config.preprocess_cells - 1 else "same"
                cell = make_cell(
                    config, config.cells.preprocess, resize, name=f"preprocess_{block}_{i}"
                )
                x = cell(x, train)

        taps = []
        if not config.one_group:
            for s, scale in enumerate(config.scales):
                if s > 0:
                    x = make_cell(config, config.cells.encoder, "down", name=f"down_{s}")(x, train)
                groups = scan_groups(config, EncoderGroup, scale.groups, in_axes=(0, nn.broadcast))
                x, tapped = groups(config, name=f"scale_{s}")(x, None, train)
                taps.append(tapped)

        x = Conv(config.scales[-1].encoder_channels, dtype=dtype, name="top")(nn.elu(x))
        return nn.elu(x), taps
