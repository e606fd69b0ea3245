"""CelebA at 64×64 with the plain convolutional VAE that libraries and courses show.

Data: python -m nvae_jax.main --config configs/celeba64_conv_vae.py --mode prepare
Command: python -m nvae_jax.main --config configs/celeba64_conv_vae.py --workdir DIR
"""

from ml_collections import ConfigDict

from nvae_jax.configs import default


def get_config() -> ConfigDict:
    """128 latents; the mean squared error plus 2.5e-4 times the KL."""
    config = default.get_config("celeba64", "conv_vae")
    config.data.crop = "center"
    config.model.likelihood = "squared_error"
    config.objective.beta = 2.5e-4
    config.training.update(default.plain_training(learning_rate=5e-3), epochs=10, batch_size=16)
    return config
