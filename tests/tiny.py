"""The smallest model that the tests of runs and evaluation share."""

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
