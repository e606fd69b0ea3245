"""LSUN churches at 128×128 and 5 bits, with the model of the bedrooms.

Data: python -m nvae_jax.main --config configs/lsun_church128.py --mode prepare
Command: python -m nvae_jax.main --config configs/lsun_church128.py --workdir DIR
Hardware: each image requires as much time as a bedroom's, an epoch has 126,227; a batch of 96 is
kept on any number of devices.
Result: the paper has none for this data.
"""

from ml_collections import ConfigDict

from nvae_jax.configs import lsun_bedroom128


def get_config() -> ConfigDict:
    """32 groups over 4 scales."""
    config = lsun_bedroom128.get_config()
    config.data.update(category="church_outdoor")
    config.training.update(epochs=100, warmup_epochs=5)
    return config
