"""What the tests of the train step share: two small models, a state and a batch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nvae_jax.config.training import TrainingConfig
from nvae_jax.model import ModelConfig, variable_shapes
from nvae_jax.training.optimizer import make_optimizer
from nvae_jax.training.state import TrainState

SMALL = ModelConfig(
    image_shape=(8, 8, 3),
    num_mixtures=2,
    num_groups=2,
    num_latents=2,
    encoder_channels=4,
    decoder_channels=4,
    num_blocks=0,
    encoder_cells=1,
    decoder_cells=1,
)
ONE_GROUP = dataclasses.replace(
    SMALL, num_groups=1, num_blocks=1, preprocess_cells=1, postprocess_cells=1
)
TRAINING = TrainingConfig(
    epochs=10,
    batch_size=8,
    warmup_epochs=0,
    regularization=0.1,
    initial_regularization=1.0,
    ema_decay=0.9,
    eval_statistics="averaged",
)
EPOCH_STEPS, STEPS = 10, 12


@functools.cache
def make_state(config):
    """A state like `init_state`'s, but of parameters that need no compilation, none of them 0."""
    rng = np.random.default_rng(0)

    def fill(path, shape):
        if path[-1].key in ("scale", "var"):
            return jnp.ones(shape.shape)
        spread = np.prod(shape.shape[-4:-1]) ** -0.5 if path[-1].key == "kernel" else 0.5
        return jnp.asarray(rng.uniform(-spread, spread, shape.shape), jnp.float32)

    variables = jax.tree_util.tree_map_with_path(fill, variable_shapes(config))
    params = variables["params"]
    opt_state = jax.jit(make_optimizer(TRAINING, EPOCH_STEPS).init)(params)
    return TrainState(
        jnp.uint32(TRAINING.seed),
        jnp.int32(0),
        params,
        variables["batch_stats"],
        opt_state,
        ema_params=params,
        ema_batch_stats=variables["batch_stats"],
    )


def make_images():
    """Eight images of 256 levels, gradients that differ in direction and colour."""
    rng = np.random.default_rng(1)
    rows, columns = rng.uniform(-1, 1, (2, 8, 1, 1, 3))
    y, x = np.mgrid[:8, :8][..., None] / 7 - 0.5
    return np.rint(255 * (0.5 + (rows * y + columns * x) / 2)).astype(np.float32) / 255


def adamax(state):
    return state.opt_state["adamax"]


def distance(tree, other):
    """The norm of the difference of two trees, relative to the norm of the second."""
    difference = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), tree, other)
    return optax.tree.norm(difference) / optax.tree.norm(other)
