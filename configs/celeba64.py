"""CelebA at 64×64 as in the paper (appendix A, table 6): 2.03 bits/dim.

Command: python -m nvae_jax.main --config configs/celeba64.py --workdir runs/celeba64
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """35 groups over 3 scales; the paper used 8 V100s for 92 hours."""
    config = default.get_config()
    config.data.update(name="celeba64")
    config.model.update(
        image_shape=(64, 64, 3),
        num_scales=3,
        num_groups=20,
        adaptive_groups=True,
        encoder_channels=64,
        decoder_channels=64,
        num_flows=1,
    )
    config.training.update(epochs=90, batch_size=128, regularization=1e-1)
    return config
