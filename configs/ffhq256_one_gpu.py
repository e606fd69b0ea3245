"""FFHQ at 256×256 with 24 channels, on one GPU.

Data: python -m nvae_jax.main --config configs/ffhq256_one_gpu.py --mode prepare
Command: python -m nvae_jax.main --config configs/ffhq256_one_gpu.py --workdir DIR
Hardware and time: one GPU with the memory of a V100, for it sees 6 images at a time, as each of the
8 did that this model was trained on.
Result: 0.70 bits/dim, as ffhq256_24ch.
"""

from ml_collections import ConfigDict

from configs import ffhq256_24ch


def get_config() -> ConfigDict:
    """The batch of 48 in 8 parts, one after the other."""
    config = ffhq256_24ch.get_config()
    config.training.accumulation_steps = 8
    return config
