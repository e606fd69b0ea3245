"""ImageNet at 32×32 as in the paper (appendix A, table 6).

Data: python -m nvae_jax.main --config configs/imagenet32.py --mode prepare
Command: python -m nvae_jax.main --config configs/imagenet32.py --workdir DIR
Hardware and time: the paper's 24 V100s, 70 hours; a batch of 576 on any number of devices.
Result: 3.92 bits/dim in the paper.
"""

from ml_collections import ConfigDict

from nvae_jax.configs import default


def get_config() -> ConfigDict:
    """28 groups at one scale."""
    config = default.get_config("imagenet32")
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
