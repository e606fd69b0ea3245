"""What a model is made of: its configuration, and the plan of scales that follows from it."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Literal, get_args, get_type_hints

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


_LEAST = {
    4: ("encoder_channels", "decoder_channels"),
    1: (
        *("num_scales", "num_groups", "min_groups", "num_latents", "num_mixtures"),
        *("preprocess_cells", "postprocess_cells"),
    ),
    0: ("encoder_cells", "decoder_cells", "num_blocks", "num_flows", "border"),
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything that decides the network and its likelihood (NVAE, §3 and appendix A).

    Raises `ValueError`, naming the field, when a value is impossible.
    """

    # The images, and how they are scored.
    image_shape: tuple[int, int, int]  # height, width, channels
    likelihood: Literal["bernoulli", "logistic_mixture", "normal"] = "logistic_mixture"
    num_bits: int = 8  # bits per colour channel; logistic mixture only
    num_mixtures: int = 10  # components of the logistic mixture
    bins: Literal["exact", "official"] = "exact"  # official: bins that sum to more than 1 at 8 bits
    border: int = 0  # pixels of padding on each side that the likelihood leaves out

    # The plan of scales: how many, and how many groups of latents in each.
    num_scales: int = 1
    num_groups: int = 1  # at the finest scale
    adaptive_groups: bool = False  # halve the groups with every coarser scale
    min_groups: int = 1  # ... but not below this
    num_latents: int = 20  # latent channels in every group

    # The towers.
    architecture: str = "res_mbconv"
    encoder_channels: int = 32
    decoder_channels: int = 32
    num_blocks: int = 1  # blocks before and after the latent scales, each a halving or doubling
    preprocess_cells: int = 2  # cells in a block
    postprocess_cells: int = 2
    encoder_cells: int = 2  # cells in a group
    decoder_cells: int = 2
    squeeze_excite: bool = True

    # The posterior.
    residual_posterior: bool = True  # relative to the prior (§3.2)
    num_flows: int = 0  # pairs of autoregressive cells in every group
    flow: Literal["shift", "mixture_logistic"] = "shift"

    # How it runs, not what it computes.
    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations; all else is float32
    # What the backward pass computes again; offload: per group, with the inputs in host memory.
    remat: Remat = "none"
    unroll: bool | None = None  # groups without a loop; None: on CPU only

    def __post_init__(self):
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            allowed = get_args(hints[field.name])
            value = getattr(self, field.name)
            if isinstance(value, str) and allowed and value not in allowed:
                self._refuse(field.name, f"one of {', '.join(allowed)}")
        if self.architecture not in ARCHITECTURES:
            self._refuse("architecture", f"one of {', '.join(ARCHITECTURES)}")
        for least, names in _LEAST.items():
            for name in names:
                self._require(name, getattr(self, name) >= least, f"at least {least}")
        self._require("num_bits", 1 <= self.num_bits <= 8, "1 to 8")
        self._check_image_shape()
        if self.one_group:
            self._require(
                "decoder_channels",
                self.decoder_channels == self.encoder_channels,
                f"encoder_channels ({self.encoder_channels}) in a model of one group",
            )

    def _check_image_shape(self):
        height, width, channels = self.image_shape
        divisor = 2 ** (self.num_blocks + self.num_scales - 1)
        divides = height > 0 and width > 0 and not (height % divisor or width % divisor)
        self._require(
            "image_shape",
            divides,
            f"a height and width divisible by {divisor} = 2^(num_blocks + num_scales - 1)",
        )
        self._require("image_shape", channels >= 1, "at least one channel")
        self._require(
            "border",
            2 * self.border < min(height, width),
            f"less than half of the image's {min(height, width)} pixels",
        )

    def _require(self, name: str, condition: bool, allowed: str):
        if not condition:
            self._refuse(name, allowed)

    def _refuse(self, name: str, allowed: str):
        raise ValueError(f"model.{name} is {getattr(self, name)!r}; allowed: {allowed}")

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
        """(height, width, latents) of every group, top-down."""
        return tuple(
            (scale.height, scale.width, self.num_latents)
            for scale in reversed(self.scales)
            for _ in range(scale.groups)
        )

    @property
    def total_groups(self) -> int:
        """Groups of latents over all scales."""
        return sum(scale.groups for scale in self.scales)

    @property
    def latent_dimensions(self) -> int:
        """Latent variables of one image, over all groups."""
        return sum(math.prod(shape) for shape in self.latent_shapes)

    @property
    def image_dimensions(self) -> int:
        """Values of one image that the likelihood scores: the unit of bits per dimension."""
        height, width, channels = self.image_shape
        return (height - 2 * self.border) * (width - 2 * self.border) * channels

    @property
    def cells(self) -> Architecture:
        """The operations of each kind of cell."""
        return ARCHITECTURES[self.architecture]
