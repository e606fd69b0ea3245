"""The smallest model that the tests of runs and evaluation share."""

from configs import digits
from nvae_jax.model import ModelConfig

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
    "model.num_latents": 2,
    "model.encoder_channels": 4,
    "model.decoder_channels": 4,
    "model.architecture": "res_bnswish",
    "training.epochs": 2,
    "training.batch_size": 256,
    "training.warmup_epochs": 1,
    "training.log_interval": 2,
    "training.eval_interval": 4,
    "training.picture_interval": 10,
    "training.checkpoint_interval": 3,
}
STEPS = 2 * (1500 // 256)


def tiny_config(**changes):
    """The configuration of that run, with other values of some fields."""
    config = digits.get_config()
    config.update_from_flattened_dict(RUN | changes)
    return config
