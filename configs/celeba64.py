"""CelebA at 64×64 as in the paper (appendix A, table 6).

Data: python -m nvae_jax.main --config configs/celeba64.py --mode prepare
Command: python -m nvae_jax.main --config configs/celeba64.py --workdir DIR
Hardware and time: the paper's 8 V100s, 92 hours; a batch of 128 on any number of devices.
Result: 2.03 bits/dim in the paper.
"""

from ml_collections import ConfigDict

from nvae_jax.configs import default


def get_config() -> ConfigDict:
    """35 groups over 3 scales."""
    config = default.get_config("celeba64")
    config.model.update(
        num_scales=3,
        num_groups=20,
        adaptive_groups=True,
        encoder_channels=64,
        decoder_channels=64,
        num_flows=1,
    )
    config.training.update(epochs=90, batch_size=128, regularization=1e-1)
    return config
