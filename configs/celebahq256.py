"""CelebA-HQ at 256×256 and 5 bits as in the paper (appendix A, table 6).

Data: python -m nvae_jax.main --config configs/celebahq256.py --mode prepare
Command: python -m nvae_jax.main --config configs/celebahq256.py --workdir DIR
Hardware and time: the paper's 24 V100s, 94 hours; a batch of 96 on any number of devices.
Result: 0.70 bits/dim in the paper.
"""

from ml_collections import ConfigDict

from nvae_jax.configs import default


def get_config() -> ConfigDict:
    """36 groups over 5 scales."""
    config = default.get_config("celebahq256")
    config.model.update(
        num_bits=5,
        num_scales=5,
        num_groups=16,
        adaptive_groups=True,
        min_groups=4,
        encoder_channels=30,
        decoder_channels=30,
        num_flows=2,
        dtype="bfloat16",
        remat="group",
    )
    config.training.update(epochs=300, batch_size=96, initial_regularization=1.0)
    return config
