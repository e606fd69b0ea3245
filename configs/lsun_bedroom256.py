"""LSUN bedrooms at 256×256 and 5 bits, with the paper's model of CelebA-HQ.

Data: python -m nvae_jax.main --config configs/lsun_bedroom256.py --mode prepare
Command: python -m nvae_jax.main --config configs/lsun_bedroom256.py --workdir DIR
Hardware: each image requires as much time as CelebA-HQ's, an epoch has 3,033,042; a batch of 96 on
any number of devices.
Result: the paper has none for this data.
"""

from ml_collections import ConfigDict

from nvae_jax.configs import celebahq256, default


def get_config() -> ConfigDict:
    """36 groups over 5 scales."""
    config = celebahq256.get_config()
    config.data = default.get_config("lsun").data
    config.data.update(category="bedroom", size=256)
    config.training.update(epochs=5, warmup_epochs=1)
    return config
