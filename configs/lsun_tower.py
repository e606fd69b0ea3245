"""LSUN towers at 64×64, with the model of the churches.

Data: python -m nvae_jax.main --config configs/lsun_tower.py --mode prepare
Command: python -m nvae_jax.main --config configs/lsun_tower.py --workdir DIR
Hardware: each image requires as much time as CelebA's, an epoch has 708,264; a batch of 128 on any
number of devices.
Result: the paper has none for this data.
"""

from ml_collections import ConfigDict

from nvae_jax.configs import lsun_church64


def get_config() -> ConfigDict:
    """35 groups over 3 scales."""
    config = lsun_church64.get_config()
    config.data.update(category="tower")
    config.training.update(epochs=16, warmup_epochs=1)
    return config
