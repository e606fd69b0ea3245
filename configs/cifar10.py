"""CIFAR-10 as in the paper (appendix A, table 6).

Data: python -m nvae_jax.main --config configs/cifar10.py --mode prepare
Command: python -m nvae_jax.main --config configs/cifar10.py --workdir DIR
Hardware and time: the paper's 8 V100s, 55 hours; a batch of 256 on any number of devices.
Result: 2.91 bits/dim in the paper.
"""

from ml_collections import ConfigDict

from nvae_jax.configs import default


def get_config() -> ConfigDict:
    """30 groups at one scale."""
    config = default.get_config("cifar10")
    config.model.update(
        num_groups=30,
        encoder_channels=128,
        decoder_channels=128,
        num_flows=1,
    )
    config.training.update(epochs=400, batch_size=256)
    return config
