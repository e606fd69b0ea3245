"""The digits with a plain convolutional VAE, for comparison with the hierarchy.

Command: python -m nvae_jax.main --config configs/digits_conv_vae.py --workdir runs/conv_vae
Another objective is named behind a colon: --config configs/digits_conv_vae.py:mmd
"""

from ml_collections import ConfigDict

from nvae_jax.configs import default


def get_config(objective: str = "elbo") -> ConfigDict:
    """64 latents under a Bernoulli head, at the steps of configs/digits.py."""
    config = default.get_config("digits", "conv_vae", objective)
    config.model.update(widths=(32, 64, 128, 256), num_latents=64)
    config.training.update(
        default.plain_training(learning_rate=1e-3),
        epochs=26,
        batch_size=64,
        log_interval=50,
        eval_interval=100,
        picture_interval=200,
        checkpoint_interval=200,
    )
    return config
