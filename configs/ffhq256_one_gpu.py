"""FFHQ at 256×256 with 24 channels, on one GPU.

Data: python -m nvae_jax.main --config configs/ffhq256_one_gpu.py --mode prepare
Command: python -m nvae_jax.main --config configs/ffhq256_one_gpu.py --workdir DIR
Hardware and time: one GPU, which sees 6 images at a time, as each of the 8 V100s did that this
model was trained on.
Memory: 8.1 GiB by the TPU compiler's count for one chip, with groups recomputed (nvae_jax.tools.aot
with --topology v5p:1x1x1 and JAX_OPTIMIZATION_LEVEL=O0).
Result: 0.70 bits/dim, as ffhq256_24ch.
"""

from ml_collections import ConfigDict

from nvae_jax.configs import ffhq256


def get_config() -> ConfigDict:
    """The batch of 48 in 8 parts, one after the other."""
    config = ffhq256.get_config()
    config.model.update(encoder_channels=24, decoder_channels=24)
    config.training.update(batch_size=48, accumulation_steps=8)
    return config
