"""Handwritten digits on a laptop: the quick start.

Command: python -m nvae_jax.main --config configs/digits.py --workdir runs/digits
"""

from ml_collections import ConfigDict

from nvae_jax.configs import default


def get_config() -> ConfigDict:
    """Three scales, five groups."""
    config = default.get_config("digits")
    config.model.update(
        num_scales=3,
        num_groups=3,
        adaptive_groups=True,
        encoder_channels=8,
        decoder_channels=8,
        num_blocks=2,
        preprocess_cells=1,
        postprocess_cells=1,
        encoder_cells=1,
        decoder_cells=1,
    )
    config.training.update(
        epochs=26,
        batch_size=64,
        learning_rate=3e-2,
        log_interval=50,
        eval_interval=100,
        picture_interval=200,
        checkpoint_interval=200,
    )
    return config
