"""LSUN bedrooms at 128×128 and 5 bits: the paper's model of 256×256 less its coarsest scale.

Data: python -m nvae_jax.main --config configs/lsun_bedroom128.py --mode prepare
Command: python -m nvae_jax.main --config configs/lsun_bedroom128.py --workdir DIR
Hardware: each image requires a quarter of the time of CelebA-HQ's, an epoch has 3,033,042; a batch
of 96 on any number of devices.
Result: the paper has none for this data.
"""

from ml_collections import ConfigDict

from nvae_jax.configs import celebahq256, default


def get_config() -> ConfigDict:
    """32 groups over 4 scales."""
    config = celebahq256.get_config()
    config.data = default.get_config("lsun").data
    config.data.update(category="bedroom", size=128)
    config.model.update(num_scales=4)
    config.training.update(epochs=10, warmup_epochs=1)
    return config
