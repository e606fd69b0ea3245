"""The bottom-up tower."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from nvae_jax.model.architecture import ModelConfig
from nvae_jax.model.cells import Resize
from nvae_jax.model.convolution import Conv
from nvae_jax.model.tower import GROUP_INPUT, make_cell, scan_groups


class EncoderGroup(nn.Module):
    """The cells of one group."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array, _: None, train: bool) -> tuple[Array, Array]:
        """(B, h, w, C) → the same shape, twice: to carry on, and to tap."""
        x = checkpoint_name(x, GROUP_INPUT)
        for i in range(self.config.encoder_cells):
            cell = make_cell(
                self.config, self.config.cells.encoder, in_group=True, name=f"cell_{i}"
            )
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
          taps: one array (groups, B, h, w, C) per scale, finest first, groups bottom-up.
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
                groups = scan_groups(config, EncoderGroup, scale.groups)
                x, tapped = groups(config, name=f"scale_{s}")(x, None, train)
                taps.append(tapped)

        x = Conv(config.scales[-1].encoder_channels, dtype=dtype, name="top")(nn.elu(x))
        return nn.elu(x), taps
