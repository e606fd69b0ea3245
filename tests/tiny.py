"""The smallest model that the tests of runs and evaluation share, and a run that has made it."""

import dataclasses

import jax
import numpy as np

from configs import digits
from nvae_jax.config.run import RunConfig, read_run
from nvae_jax.config.training import TrainingConfig
from nvae_jax.data.loader import steps_per_epoch
from nvae_jax.data.loading import LoadingConfig
from nvae_jax.data.sources import data_config
from nvae_jax.model import ModelConfig, variable_shapes
from nvae_jax.model.conv_vae import ConvVAEConfig
from nvae_jax.parallel import make_mesh
from nvae_jax.training.program import make_program
from nvae_jax.workdir import Workdir

CONFIG = ModelConfig(
    image_shape=(32, 32, 1),
    likelihood="bernoulli",
    border=2,
    num_groups=2,
    num_latents=2,
    encoder_channels=4,
    decoder_channels=4,
    architecture="res_bnswish",
    preprocess_cells=1,
    postprocess_cells=1,
    encoder_cells=1,
    decoder_cells=1,
)

# A run of that model on the digits: ten steps of 256 images.
RUN = {
    "model.num_scales": 1,
    "model.num_groups": 2,
    "model.num_blocks": 0,
    "model.num_latents": 2,
    "model.encoder_channels": 4,
    "model.decoder_channels": 4,
    "model.architecture": "res_bnswish",
    "training.epochs": 2,
    "training.batch_size": 256,
    "training.learning_rate": 1e-2,
    "training.warmup_epochs": 1,
    "training.log_interval": 2,
    "training.eval_interval": 4,
    "training.picture_interval": 10,
    "training.checkpoint_interval": 3,
    "training.drift_batches": 0,  # which has a program of its own
}
STEPS = 2 * (1500 // 256)


def tiny_run(**changes):
    """That run, with other values of some fields."""
    config = digits.get_config()
    config.update_from_flattened_dict(RUN | changes)
    return read_run(config)


def run_program(run, mesh):
    """The program of a run, as training has it."""
    dataset = run.open_data()
    steps = steps_per_epoch(dataset, run.training.batch_size)
    return make_program(run.model, run.training, steps, mesh, flip=dataset.flip)


# Two scales of two groups.
RUN_CONFIG = dataclasses.replace(CONFIG, num_scales=2, num_blocks=2, squeeze_excite=False)
ONE_DEVICE = make_mesh(jax.devices()[:1])

# The smallest with everything between two groups: a change of scale, and flows.
SMALL = ModelConfig(
    image_shape=(8, 4, 1),
    likelihood="bernoulli",
    num_scales=2,
    num_groups=2,
    num_latents=2,
    encoder_channels=4,
    decoder_channels=4,
    num_blocks=0,
    encoder_cells=1,
    decoder_cells=1,
    architecture="res_bnswish",
    squeeze_excite=False,
    num_flows=1,
)


def random_variables(config):
    """Parameters and statistics in no special state."""
    rng = np.random.default_rng(0)

    def draw(key, shape):
        centre = {"scale": 1.0, "var": 1.0}.get(key[-1].key, 0.0)
        return np.float32(rng.uniform(centre - 0.5, centre + 0.5, shape.shape))

    return jax.tree_util.tree_map_with_path(draw, variable_shapes(config))


def random_noise(config, number, rng):
    """What the latents of `number` images are drawn with: (number, h, w, Z) for each group."""
    return [np.float32(rng.normal(size=(number, *shape))) for shape in config.latent_shapes]


def make_run(path, config=RUN_CONFIG, /, **data):
    """A work directory as a training of `config` leaves it, of `random_variables`."""
    run = RunConfig(
        model=config,
        data=data_config(**data or {"name": "digits"}),
        loading=LoadingConfig(),
        training=TrainingConfig(epochs=10, batch_size=8),
    )
    workdir = Workdir(path)
    workdir.save_config(run.to_dict())
    state = random_variables(config) | {"opt_state": np.zeros(3)}
    workdir.checkpoints.save(7, state, {"step": 7})
    workdir.checkpoints.close()
    return path


# Plain VAEs, with classes and without.
CLASSES = ConvVAEConfig(
    image_shape=(32, 32, 1),
    likelihood="bernoulli",
    border=2,
    widths=(4, 8),
    num_latents=3,
    num_classes=4,
)
PLAIN = dataclasses.replace(CLASSES, num_classes=0)
