"""ImageNet at 64×64, with the paper's model of CelebA at that size.

Data: python -m nvae_jax.main --config configs/imagenet64.py --mode prepare
Command: python -m nvae_jax.main --config configs/imagenet64.py --workdir DIR
Hardware: a step as long as CelebA's at 64×64 with three times the batch; 384 on any number
of devices.
Result: the paper has none for this data.
"""

from ml_collections import ConfigDict

from nvae_jax.configs import celeba64, imagenet32


def get_config() -> ConfigDict:
    """35 groups over 3 scales, trained as ImageNet at 32×32 is."""
    config = imagenet32.get_config()
    config.data.update(name="imagenet64")
    config.model = celeba64.get_config().model
    config.training.update(batch_size=384)
    return config
