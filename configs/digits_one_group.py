"""The same digits and steps with a plain VAE of like size, for comparison with the hierarchy.

Command: python -m nvae_jax.main --config configs/digits_one_group.py --workdir runs/one_group
"""

from ml_collections import ConfigDict

from configs import digits


def get_config() -> ConfigDict:
    """One group of latents at 8×8."""
    config = digits.get_config()
    config.model.update(
        num_scales=1,
        num_groups=1,
        adaptive_groups=False,
    )
    return config
