"""Groups of a scale: a loop or none, recomputed or not, they are the same model."""

import dataclasses
import functools
import re

import chex
import goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from nvae_jax.config.training import TrainingConfig
from nvae_jax.model import NVAE, ModelConfig, variable_shapes
from nvae_jax.parallel import make_mesh
from nvae_jax.training.program import make_program

CONFIG = ModelConfig(
    image_shape=(4, 4, 1),
    likelihood="bernoulli",
    num_groups=3,
    num_latents=2,
    encoder_channels=4,
    decoder_channels=4,
    num_blocks=0,
    encoder_cells=1,
    decoder_cells=1,
    squeeze_excite=False,
    unroll=False,
)
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(3, 4, 4, 1)).astype(np.float32)
NOISE = [RNG.normal(size=(3, *shape)).astype(np.float32) for shape in CONFIG.latent_shapes]


def random_variables():
    """Variables in no special state."""
    rng = np.random.default_rng(1)

    def draw(path, shape):
        centre = 1.0 if path[-1].key in ("scale", "var") else 0.0
        return jnp.float32(rng.uniform(centre - 0.5, centre + 0.5, shape.shape))

    return jax.tree_util.tree_map_with_path(draw, variable_shapes(CONFIG))


@functools.cache
def training_pass(**how):
    """Outputs, updated statistics and gradients of a model that runs in a given way."""
    model, variables = NVAE(dataclasses.replace(CONFIG, **how)), random_variables()

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def run(params, batch_stats):
        variables = {"params": params, "batch_stats": batch_stats}
        output, updated = model.apply(variables, IMAGES, True, NOISE, mutable="batch_stats")
        return output.kl.sum() + jnp.sin(output.logits).sum(), (output, updated)

    gradients, results = run(variables["params"], variables["batch_stats"])
    return results, gradients


@pytest.mark.parametrize("how", [{"unroll": True}, {"remat": "cell"}, {"remat": "group"}], ids=str)
def test_how_a_model_runs_does_not_change_what_it_computes(how):
    (actual, gradients), (expected, true_gradients) = training_pass(**how), training_pass()
    jax.tree.map(goldens.assert_close, actual, expected)
    # Some gradients are zero but for rounding, so all are held against the largest.
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(true_gradients))
    chex.assert_trees_all_close(gradients, true_gradients, rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize(
    ("how", "loops", "checkpoints"),
    [
        ({}, 2, 0),
        ({"unroll": True}, 0, 0),
        ({"remat": "cell"}, 2, 2),
        ({"remat": "group"}, 2, 2),
        # Two cells before the groups and two behind them.
        ({"remat": "group", "num_blocks": 1, "image_shape": (8, 8, 1)}, 2, 2 + 4),
    ],
    ids=str,
)
def test_a_program_has_the_loops_and_checkpoints_that_were_asked_for(how, loops, checkpoints):
    # One loop for the encoder's three groups and one for the decoder's two after the first; in
    # each a group of one cell.
    config = dataclasses.replace(CONFIG, **how)
    images = np.zeros((3, *config.image_shape), np.float32)
    run = jax.jit(lambda variables: NVAE(config).apply(variables, images, False, NOISE))
    traced = run.trace(variable_shapes(config))
    assert len(re.findall(r"\b(?:remat|checkpoint)\w*\[", str(traced.jaxpr))) == checkpoints
    assert traced.lower().as_text().count("stablehlo.while") == loops


@pytest.mark.parametrize(("remat", "arrays"), [("group", 0), ("offload", 2)])
def test_what_groups_start_from_waits_in_the_hosts_memory(remat, arrays):
    model = NVAE(dataclasses.replace(CONFIG, remat=remat))

    def loss(params, batch_stats):
        variables = {"params": params, "batch_stats": batch_stats}
        return model.apply(variables, IMAGES, True, NOISE, mutable="batch_stats")[0].logits.sum()

    shapes = variable_shapes(CONFIG)
    traced = jax.make_jaxpr(jax.grad(loss))(shapes["params"], shapes["batch_stats"])
    moves = re.findall(r"devices=\(MemorySpace\.(\w+),\)", str(traced))
    # One array a tower: there in the forward pass, and back in the other.
    assert sorted(moves) == ["Device"] * arrays + ["Host"] * arrays


def test_a_cpu_has_no_other_memory_to_offload_to():
    training = TrainingConfig(epochs=10, batch_size=8)
    with pytest.raises(ValueError, match=r"^model.remat is 'offload'; allowed on cpu: none, cell"):
        make_program(
            *(dataclasses.replace(CONFIG, remat="offload"), training, 10, make_mesh()),
            flip=False,
        )


def test_a_fresh_model_has_groups_that_differ():
    model = NVAE(dataclasses.replace(CONFIG, architecture="res_bnswish"))
    params = jax.jit(lambda key: model.init(key, IMAGES, True)["params"])(jax.random.key(0))
    params = flatten_dict(params)
    stacks = [x for path, x in params.items() if path[1] == "scale_0" and path[-1] == "kernel"]
    assert len(stacks) == 2 + 6  # of the encoder's groups and of the decoder's
    assert all(np.all(stack[0] != stack[1]) for stack in stacks)
    features = params["decoder", "prior_features"]
    assert 0 <= features.min() < 0.2
    assert 0.8 < features.max() < 1
