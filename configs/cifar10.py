"""CIFAR-10 as in the paper (appendix A, table 6): 2.91 bits/dim.

Command: python -m nvae_jax.main --config configs/cifar10.py --workdir runs/cifar10
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """30 groups at one scale; the paper used 8 V100s for 55 hours."""
    config = default.get_config()
    config.data.update(name="cifar10")
    config.model.update(
        num_groups=30,
        encoder_channels=128,
        decoder_channels=128,
        num_flows=1,
    )
    config.training.update(epochs=400, batch_size=256)
    return config
