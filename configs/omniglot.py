"""OMNIGLOT at 28×28 with the paper's model of MNIST.

Data: python -m nvae_jax.main --config configs/omniglot.py --mode prepare
Command: python -m nvae_jax.main --config configs/omniglot.py --workdir DIR
Hardware: as for MNIST, whose images require the same time; a batch of 400 on any number of devices.
Result: the paper has none for this data.
"""

from ml_collections import ConfigDict

from nvae_jax.configs import mnist


def get_config() -> ConfigDict:
    """MNIST's model and training; as many epochs make 40 % of its steps."""
    config = mnist.get_config()
    config.data.update(name="omniglot")
    return config
