"""FFHQ at 256×256 and 5 bits as in the paper (appendix A, table 6): 0.69 bits/dim.

Command: python -m nvae_jax.main --config configs/ffhq256.py --workdir runs/ffhq256
"""

from ml_collections import ConfigDict

from configs import celebahq256


def get_config() -> ConfigDict:
    """The model of CelebA-HQ; the paper used 24 V100s for 160 hours."""
    config = celebahq256.get_config()
    config.data.update(name="ffhq256")
    config.training.update(epochs=200, learning_rate=8e-3, regularization=1e-1)
    return config
