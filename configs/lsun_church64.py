"""LSUN churches at 64×64, with the paper's model of CelebA at that size.

Data: python -m nvae_jax.main --config configs/lsun_church64.py --mode prepare
Command: python -m nvae_jax.main --config configs/lsun_church64.py --workdir DIR
Hardware: each image requires as much time as CelebA's, an epoch has 126,227; a batch of 128 on any
number of devices.
Result: the paper has none for this data.
"""

from ml_collections import ConfigDict

from nvae_jax.configs import celeba64, default


def get_config() -> ConfigDict:
    """35 groups over 3 scales."""
    config = celeba64.get_config()
    config.data = default.get_config("lsun").data
    config.data.update(category="church_outdoor", size=64)
    return config
