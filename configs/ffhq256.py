"""FFHQ at 256×256 and 5 bits as in the paper (appendix A, table 6).

Data: python -m nvae_jax.main --config configs/ffhq256.py --mode prepare
Command: python -m nvae_jax.main --config configs/ffhq256.py --workdir DIR
Hardware and time: the paper's 24 V100s, 160 hours; a batch of 96 on any number of devices.
Result: 0.69 bits/dim in the paper, on a split of its own.
"""

from ml_collections import ConfigDict

from nvae_jax.configs import celebahq256


def get_config() -> ConfigDict:
    """The model of CelebA-HQ."""
    config = celebahq256.get_config()
    config.data.update(name="ffhq256")
    config.training.update(epochs=200, learning_rate=8e-3, regularization=1e-1)
    return config
