"""The configuration of a model, and the scales and cells that follow from it."""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar, Literal

from nvae_jax.model.vae import VAEConfig

Remat = Literal["none", "cell", "group", "offload"]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The operations of each kind of cell; `down` and `up` cells are of the tower they sit in."""

    encoder: tuple[str, ...]
    preprocess: tuple[str, ...]
    decoder: tuple[str, ...]
    postprocess: tuple[str, ...]


def _uniform(operation: str) -> Architecture:
    return Architecture(*([(operation, operation)] * 4))


def _residual_encoder(first: str, second: str) -> Architecture:
    cell = (first, second)
    return Architecture(cell, cell, ("mconv_e6k5g0",), ("mconv_e3k5g0",))


_E6K5, _E3K5, _E3K5G8 = ("mconv_e6k5g0",), ("mconv_e3k5g0",), ("mconv_e3k5g8",)
_BNSWISH = ("res_bnswish", "res_bnswish")

ARCHITECTURES = {
    "res_mbconv": _residual_encoder("res_bnswish", "res_bnswish"),
    "res_elu": _uniform("res_elu"),
    "res_bnelu": _uniform("res_bnelu"),
    "res_bnswish": _uniform("res_bnswish"),
    "mbconv_sep": Architecture(_E6K5, _E3K5, _E6K5, _E3K5),
    "mbconv_sep11": Architecture(("mconv_e6k11g0",), _E3K5, ("mconv_e6k11g0",), _E3K5),
    "mbconv_res": Architecture(_E6K5, _E3K5, _BNSWISH, _BNSWISH),
    "mbconv_den": Architecture(_E6K5, _E3K5G8, _E6K5, _E3K5G8),
    "res53_mbconv": _residual_encoder("res_bnswish5", "res_bnswish"),
    "res35_mbconv": _residual_encoder("res_bnswish", "res_bnswish5"),
    "res55_mbconv": _residual_encoder("res_bnswish5", "res_bnswish5"),
}


@dataclasses.dataclass(frozen=True)
class Scale:
    """One latent scale: its groups of latents, its resolution and both towers' widths there."""

    groups: int
    height: int
    width: int
    encoder_channels: int
    decoder_channels: int


# The least and the most of a field; the most are far beyond any machine.
_RANGES = {
    (4, 2**14): ("encoder_channels", "decoder_channels"),
    (1, 16): ("num_scales",),
    (0, 16): ("num_blocks",),
    (1, 1024): (
        *("num_groups", "min_groups", "num_latents"),
        *("preprocess_cells", "postprocess_cells"),
    ),
    (0, 1024): ("encoder_cells", "decoder_cells", "num_flows"),
}


@dataclasses.dataclass(frozen=True)
class ModelConfig(VAEConfig):
    """The section `model` of an NVAE: the network (NVAE, §3 and appendix A)."""

    name: ClassVar[str] = "nvae"

    likelihood: Literal["bernoulli", "logistic_mixture", "normal"] = "logistic_mixture"

    # The latent scales, each half as large as the one before, and the groups of latents in each.
    num_scales: int = 1
    num_groups: int = 1  # at the finest scale
    adaptive_groups: bool = False  # halve the number of groups with every coarser scale
    min_groups: int = 1  # ... but not below this
    num_latents: int = 20  # latent channels per group

    # The towers.
    architecture: str = "res_mbconv"  # the paper's; a key of ARCHITECTURES
    encoder_channels: int = 32  # at full resolution; doubled with every halving
    decoder_channels: int = 32
    num_blocks: int = 1  # blocks before and after the latent scales, each a halving or doubling
    preprocess_cells: int = 2  # residual cells per block
    postprocess_cells: int = 2
    encoder_cells: int = 2  # residual cells per group
    decoder_cells: int = 2
    squeeze_excite: bool = True

    # The posterior.
    residual_posterior: bool = True  # relative to the prior (§3.2)
    num_flows: int = 0  # pairs of autoregressive cells per group
    flow: Literal["shift", "mixture_logistic"] = "shift"

    # How it runs, not what it computes.
    # What the backward pass recomputes; offload: per group, with the inputs in host memory.
    remat: Remat = "none"
    unroll: bool | None = None  # the groups of a scale without a loop; None: on CPU only

    def __post_init__(self):
        super().__post_init__()
        known = self.architecture in ARCHITECTURES
        self._require("architecture", known, f"one of {', '.join(ARCHITECTURES)}")
        for (least, most), names in _RANGES.items():
            for name in names:
                self._require_range(name, least, most)
        height, width, _ = self.image_shape
        divisor = 2 ** (self.num_blocks + self.num_scales - 1)
        divides = not (height % divisor or width % divisor)
        allowed = f"a height and width divisible by {divisor} = 2^(num_blocks + num_scales - 1)"
        self._require("image_shape", divides, allowed)
        if self.one_group:
            self._require(
                "decoder_channels",
                self.decoder_channels == self.encoder_channels,
                f"encoder_channels ({self.encoder_channels}) in a model of one group",
            )

    @property
    def quick_to_compile(self) -> ModelConfig:
        """The same model with loops."""
        return dataclasses.replace(self, unroll=False)

    @property
    def one_group(self) -> bool:
        """Whether this is a plain VAE: a single group of latents and no towers."""
        return self.num_scales == 1 and self.num_groups == 1

    @functools.cached_property
    def scales(self) -> tuple[Scale, ...]:
        """The latent scales, the finest first."""
        height, width, _ = self.image_shape
        groups, scales = self.num_groups, []
        for s in range(self.num_scales):
            factor = 2 ** (self.num_blocks + s)
            scales.append(
                Scale(
                    groups=groups,
                    height=height // factor,
                    width=width // factor,
                    encoder_channels=self.encoder_channels * factor,
                    decoder_channels=self.decoder_channels * factor,
                )
            )
            if self.adaptive_groups:
                groups = max(self.min_groups, groups // 2)
        return tuple(scales)

    @property
    def latent_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """(height, width, latents) per group, top-down."""
        return tuple(
            (scale.height, scale.width, self.num_latents)
            for scale in reversed(self.scales)
            for _ in range(scale.groups)
        )

    @property
    def groups_per_scale(self) -> tuple[int, ...]:
        """Groups of latents in each scale, the coarsest first."""
        return tuple(scale.groups for scale in reversed(self.scales))

    @property
    def cells(self) -> Architecture:
        """The operations of each kind of cell."""
        return ARCHITECTURES[self.architecture]
