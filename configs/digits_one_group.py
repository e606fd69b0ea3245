"""The same digits and steps with a plain VAE of like size, for comparison with the hierarchy.

Command: python -m nvae_jax.main --config configs/digits_one_group.py --workdir runs/one_group
"""

from ml_collections import ConfigDict

from nvae_jax.configs import digits


def get_config() -> ConfigDict:
    """One group of latents at 4×4, and wider cells to have as many parameters."""
    config = digits.get_config()
    config.model.update(
        num_scales=1,
        num_groups=1,
        adaptive_groups=False,
        num_blocks=3,
        encoder_channels=26,
        decoder_channels=26,
    )
    return config
