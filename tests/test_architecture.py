"""Configurations and the plans that follow: the paper's six, and what is refused."""

import dataclasses
import functools

import goldens
import jax
import pytest

from nvae_jax.errors import ConfigError
from nvae_jax.interop.official import config_from_args
from nvae_jax.model import ModelConfig, variable_shapes
from nvae_jax.model.architecture import _RANGES, ARCHITECTURES
from nvae_jax.model.cells import OPERATIONS

COLOUR = functools.partial(ModelConfig, num_flows=1)
FACES = ModelConfig(
    image_shape=(256, 256, 3),
    num_bits=5,
    num_scales=5,
    num_groups=16,
    adaptive_groups=True,
    min_groups=4,
    encoder_channels=30,
    decoder_channels=30,
    num_flows=2,
)
# Configuration, parameters, convolutions and batch norms of the paper's models. CelebA-HQ-256 and
# FFHQ-256 have the same one.
PAPER = {
    "mnist": (
        ModelConfig(
            image_shape=(32, 32, 1),
            likelihood="bernoulli",
            border=2,
            num_scales=2,
            num_groups=10,
            adaptive_groups=True,
            num_blocks=2,
            preprocess_cells=3,
            postprocess_cells=3,
        ),
        (33_363_134, 255, 214),
    ),
    "cifar10": (
        COLOUR(image_shape=(32, 32, 3), num_groups=30, encoder_channels=128, decoder_channels=128),
        (130_852_480, 610, 364),
    ),
    "imagenet32": (
        COLOUR(image_shape=(32, 32, 3), num_groups=28, encoder_channels=192, decoder_channels=192),
        (268_509_444, 570, 340),
    ),
    "celeba64": (
        COLOUR(
            image_shape=(64, 64, 3),
            num_scales=3,
            num_groups=20,
            adaptive_groups=True,
            encoder_channels=64,
            decoder_channels=64,
        ),
        (153_281_364, 730, 436),
    ),
    "celebahq256, ffhq256": (FACES, (330_798_664, 986, 460)),
}


def count(leaves, name, ndim):
    """Layers whose leaf `name` has `ndim` axes, or one more in front for a stack of them."""
    leaves = [leaf for path, leaf in leaves if path[-1].key == name and leaf.ndim >= ndim]
    return sum(leaf.shape[0] if leaf.ndim > ndim else 1 for leaf in leaves)


@pytest.mark.parametrize(("config", "expected"), PAPER.values(), ids=PAPER)
def test_models_of_the_paper_have_their_sizes(config, expected):
    variables = variable_shapes(config)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    convolutions, norms = count(leaves, "kernel", ndim=4), count(leaves, "mean", ndim=1)
    assert (parameters, convolutions, norms) == expected


def test_plan_of_ffhq():
    assert [scale.groups for scale in FACES.scales] == [16, 8, 4, 4, 4]
    assert [(scale.height, scale.width) for scale in FACES.scales] == [
        (side, side) for side in (128, 64, 32, 16, 8)
    ]
    channels = [60, 120, 240, 480, 960]
    assert [scale.encoder_channels for scale in FACES.scales] == channels
    assert [scale.decoder_channels for scale in FACES.scales] == channels
    assert FACES.total_groups == len(FACES.latent_shapes) == 36
    assert FACES.latent_shapes[0] == (8, 8, 20)
    assert FACES.latent_shapes[-16:] == ((128, 128, 20),) * 16
    assert FACES.latent_dimensions == 6_005_760
    assert not FACES.one_group


def test_odd_groups_are_halved_downwards():
    config = COLOUR(image_shape=(32, 32, 3), num_scales=4, num_groups=7, adaptive_groups=True)
    assert [scale.groups for scale in config.scales] == [7, 3, 1, 1]


def test_plan_of_images_that_are_not_square():
    config = ModelConfig(
        image_shape=(24, 8, 2), num_scales=2, num_groups=2, encoder_channels=4, decoder_channels=6
    )
    fine, coarse = config.scales
    assert (fine.height, fine.width, coarse.height, coarse.width) == (12, 4, 6, 2)
    assert (coarse.encoder_channels, coarse.decoder_channels) == (16, 24)
    assert config.latent_shapes == ((6, 2, 20),) * 2 + ((12, 4, 20),) * 2


def test_groups_of_scales_agree_with_the_official_ones():
    for row in goldens.from_json(goldens.load("standalone")["groups_per_scale"]):
        config = ModelConfig(
            image_shape=(64, 64, 3),
            num_scales=row["num_scales"],
            num_groups=row["num_groups"],
            adaptive_groups=row["ada"],
            min_groups=row["min_groups"],
        )
        assert [scale.groups for scale in config.scales] == row["groups"]


def test_sizes_of_images_agree_with_the_official_ones():
    arrays = goldens.load("standalone")
    sides = goldens.from_json(arrays["input_size"])
    for dataset, dimensions in goldens.from_json(arrays["num_output"]).items():
        plan = dict.fromkeys(["num_latent_scales", "num_groups_per_scale"], 1)
        towers = dict.fromkeys(["num_channels_enc", "num_channels_dec"], 8)
        cells = dict.fromkeys(
            [
                "num_latent_per_group",
                "num_preprocess_blocks",
                "num_postprocess_blocks",
                "num_preprocess_cells",
                "num_postprocess_cells",
                "num_cell_per_cond_enc",
                "num_cell_per_cond_dec",
                "num_nf",
                "use_se",
                "res_dist",
            ],
            1,
        )
        args = {"dataset": dataset, "arch_instance": "res_mbconv", "num_x_bits": 8}
        config = config_from_args({**args, **plan, **towers, **cells})
        assert config.image.num_dimensions == dimensions
        assert config.image_shape[:2] == (sides[dataset], sides[dataset])


def test_architectures_name_known_operations():
    operations = {
        operation
        for architecture in ARCHITECTURES.values()
        for cell in dataclasses.astuple(architecture)
        for operation in cell
    }
    assert operations == set(OPERATIONS)


def test_architectures_are_those_of_the_official_code():
    swish, swish5 = "res_bnswish", "res_bnswish5"
    e6, e3 = ("mconv_e6k5g0",), ("mconv_e3k5g0",)
    e11, grouped = ("mconv_e6k11g0",), ("mconv_e3k5g8",)
    residual = {
        "res_mbconv": (swish, swish),
        "res53_mbconv": (swish5, swish),
        "res35_mbconv": (swish, swish5),
        "res55_mbconv": (swish5, swish5),
    }
    expected = {
        **{name: (cell, cell, e6, e3) for name, cell in residual.items()},
        **{name: ((name, name),) * 4 for name in ("res_elu", "res_bnelu", "res_bnswish")},
        "mbconv_sep": (e6, e3, e6, e3),
        "mbconv_sep11": (e11, e3, e11, e3),
        "mbconv_res": (e6, e3, (swish, swish), (swish, swish)),
        "mbconv_den": (e6, grouped, e6, grouped),
    }
    actual = {
        name: (cells.encoder, cells.preprocess, cells.decoder, cells.postprocess)
        for name, cells in ARCHITECTURES.items()
    }
    assert actual == expected


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("image_shape", (30, 32, 3), "divisible by 4"),
        ("image_shape", (32, 30, 3), "divisible by 4"),
        ("image_shape", (0, 32, 3), "sides of 1 to 16384"),
        ("image_shape", (32, 32, 0), "1 to 1024 channels"),
        ("likelihood", "poisson", "bernoulli, logistic_mixture, normal"),
        ("num_bits", 0, "1 to 8"),
        ("num_bits", 9, "1 to 8"),
        ("num_mixtures", 0, "1 to 1"),
        ("bins", "inexact", "exact, official"),
        ("border", -1, "0 or more"),
        ("border", 16, "less than half of 32 pixels"),
        ("num_scales", 0, "1 to 1"),
        ("num_groups", 0, "1 to 1"),
        ("min_groups", 0, "1 to 1"),
        ("num_latents", 0, "1 to 1"),
        ("architecture", "res_mbconv9", "one of res_mbconv, "),
        ("encoder_channels", 3, "4 to 1"),
        ("decoder_channels", 0, "4 to 1"),
        ("num_blocks", -1, "0 to 1"),
        ("preprocess_cells", 0, "1 to 1"),
        ("postprocess_cells", 0, "1 to 1"),
        ("encoder_cells", -1, "0 to 1"),
        ("decoder_cells", -1, "0 to 1"),
        ("num_flows", -1, "0 to 1"),
        ("flow", "affine", "shift, mixture_logistic"),
        ("dtype", "float16", "float32, bfloat16"),
        ("remat", "all", "none, cell, group"),
    ],
)
def test_impossible_values_are_named(field, value, allowed):
    options = {"image_shape": (32, 32, 3), "num_scales": 2, "num_groups": 2, field: value}
    with pytest.raises(ValueError, match=f"^model.{field} is .*; allowed: .*{allowed}"):
        ModelConfig(**options)


@pytest.mark.parametrize(
    ("field", "most"), [(name, most) for (_, most), names in _RANGES.items() for name in names]
)
def test_sizes_beyond_any_machine_are_refused_at_once(field, most):
    for value in (most + 1, 10**20):
        with pytest.raises(ConfigError, match=f"^model.{field} is {value}; allowed: .* to {most}$"):
            ModelConfig(image_shape=(32, 32, 3), **{field: value})


def test_towers_of_a_model_of_one_group_are_equally_wide():
    options = {"image_shape": (32, 32, 3), "encoder_channels": 8, "decoder_channels": 16}
    with pytest.raises(
        ValueError, match=r"model.decoder_channels is 16; allowed: encoder_channels"
    ):
        ModelConfig(**options)
    ModelConfig(**options, num_groups=2)
