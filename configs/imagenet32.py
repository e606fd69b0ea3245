"""ImageNet at 32×32 as in the paper (appendix A, table 6): 3.92 bits/dim.

Command: python -m nvae_jax.main --config configs/imagenet32.py --workdir runs/imagenet32
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """28 groups at one scale; the paper used 24 V100s for 70 hours."""
    config = default.get_config()
    config.data.update(name="imagenet32")
    config.model.update(
        num_groups=28,
        encoder_channels=192,
        decoder_channels=192,
        num_flows=1,
    )
    config.training.update(
        epochs=45,
        batch_size=576,
        warmup_epochs=1,
        initial_regularization=1.0,
    )
    return config
