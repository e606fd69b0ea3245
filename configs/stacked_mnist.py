"""Three digits of MNIST stacked as colours, with the paper's model of MNIST.

Data: python -m nvae_jax.main --config configs/stacked_mnist.py --mode prepare
Command: python -m nvae_jax.main --config configs/stacked_mnist.py --workdir DIR
Hardware: as for MNIST, with twice the images; a batch of 400 on any number of devices.
Result: the paper has none for this data; the original does not build a model for it.
"""

from ml_collections import ConfigDict

from nvae_jax.configs import mnist


def get_config() -> ConfigDict:
    """MNIST's plan with a likelihood of colours, and as many steps."""
    config = mnist.get_config()
    config.data.update(name="stacked_mnist")
    config.training.update(epochs=200)
    return config
