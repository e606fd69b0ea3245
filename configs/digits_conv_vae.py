"""The digits with a plain convolutional VAE, for comparison with the hierarchy.

Command: python -m nvae_jax.main --config configs/digits_conv_vae.py --workdir runs/conv_vae
Another objective is named behind a colon: --config configs/digits_conv_vae.py:mmd
"""

from ml_collections import ConfigDict

from nvae_jax.configs import default, digits


def get_config(objective: str = "elbo") -> ConfigDict:
    """64 latents under a Bernoulli head, at the steps of configs/digits.py."""
    config = default.get_config("digits", "conv_vae", objective)
    config.model.update(widths=(32, 64, 128, 256), num_latents=64)
    config.training.update(digits.get_config().training.to_dict())
    config.training.update(plain_training(learning_rate=1e-3))
    return config


def plain_training(learning_rate: float) -> dict:
    """Adam at a constant rate, without NVAE's regularisers, L2 and warm-up of the KL."""
    return {
        "optimizer": "adam",
        "learning_rate": learning_rate,
        "min_learning_rate": learning_rate,
        "warmup_epochs": 0,
        "weight_decay": 0.0,
        "regularization": 0.0,
        "kl_warmup": 0.0,
        "kl_constant": 0.0,
    }
