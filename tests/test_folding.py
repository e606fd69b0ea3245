"""Models with batch norm folded into their convolutions against the models as they were trained."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from nvae_jax.model import NVAE, ModelConfig, variable_shapes
from nvae_jax.model.folding import FoldedNVAE, fold

CONFIG = ModelConfig(
    image_shape=(8, 8, 1),
    likelihood="bernoulli",
    num_scales=1,
    num_groups=2,
    num_latents=2,
    num_flows=1,
    encoder_channels=4,
    decoder_channels=4,
    num_blocks=1,
    preprocess_cells=1,
    postprocess_cells=1,
    encoder_cells=1,
    decoder_cells=1,
    unroll=False,
)
IMAGES = np.random.default_rng(0).uniform(size=(2, 8, 8, 1)).astype(np.float32)
NOISE = [
    np.random.default_rng(i).normal(size=(2, *shape)).astype(np.float32)
    for i, shape in enumerate(CONFIG.latent_shapes)
]


def random_variables(config, bias=0.0):
    """Variables in no special state; biases of convolutions are around `bias`."""
    rng = np.random.default_rng(1)

    def draw(path, shape):
        layer, name = path[-2].key, path[-1].key
        centre = 1.0 if name in ("scale", "var") else 0.0
        if name == "bias" and not layer.startswith("norm"):
            centre = bias
        return jnp.float32(rng.uniform(centre - 0.4, centre + 0.4, shape.shape))

    return jax.tree_util.tree_map_with_path(draw, variable_shapes(config))


def outputs(network, variables):
    @jax.jit
    def run(variables):
        output = network.apply(variables, IMAGES, False, NOISE)
        return (
            output.logits,
            output.kl,
            network.apply(variables, 2, 0.7, NOISE, method="sample_prior"),
        )

    return run(variables)


@pytest.mark.parametrize("architecture", ["res_mbconv", "mbconv_res", "res_elu"])
def test_a_folded_model_computes_the_same(architecture):
    config = dataclasses.replace(CONFIG, architecture=architecture)
    variables = random_variables(config)
    expected = outputs(NVAE(config), variables)
    actual = outputs(FoldedNVAE(config), fold(config, variables))
    for ours, true in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, true, rtol=0, atol=2e-5 * np.abs(true).max())


def test_only_the_first_batch_norm_of_a_pre_activation_cell_stays():
    variables = random_variables(CONFIG)
    folded = jax.eval_shape(functools.partial(fold, CONFIG), variables)
    left = {path[:-1] for path in flatten_dict(folded["batch_stats"])}
    firsts = {path[:-1] for path in flatten_dict(variables["batch_stats"]) if "op_0" in path}
    assert left == {path for path in firsts if path[-1] == "norm"}
    names = {path[-1] for path in flatten_dict(folded["params"])}
    assert names == {"kernel", "bias", "scale", "prior_features"}
    scales = {path[:-1] for path in flatten_dict(folded["params"]) if path[-1] == "scale"}
    assert scales == left


def test_bfloat16_rounds_little_more_than_before_where_means_are_large():
    exact = dataclasses.replace(CONFIG, architecture="mbconv_res", num_flows=0)
    low = dataclasses.replace(exact, dtype="bfloat16")
    variables = random_variables(exact, bias=5.0)
    # The statistics of the batch, out of the running ones that it changes.
    _, updated = jax.jit(functools.partial(NVAE(exact).apply, train=True, mutable=["batch_stats"]))(
        variables, IMAGES, noise=NOISE
    )
    own = jax.tree.map(
        lambda new, old: (new - 0.95 * old) / 0.05,
        updated["batch_stats"],
        variables["batch_stats"],
    )
    variables = {"params": variables["params"], "batch_stats": own}
    true = outputs(NVAE(exact), variables)[0]
    plain = np.abs(outputs(NVAE(low), variables)[0] - true).mean()
    folded = np.abs(outputs(FoldedNVAE(low), fold(low, variables))[0] - true).mean()
    assert folded < 1.5 * plain
    names = {path[-2] for path in flatten_dict(fold(low, variables)["batch_stats"])}
    assert names == {"norm", "norm_in"}


def test_training_is_refused():
    variables = jax.eval_shape(functools.partial(fold, CONFIG), random_variables(CONFIG))
    with pytest.raises(ValueError, match="train is True"):
        jax.eval_shape(lambda v: FoldedNVAE(CONFIG).apply(v, IMAGES, True, NOISE), variables)
