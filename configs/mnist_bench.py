"""The paper's MNIST model at the batch of the benchmark.

Data: python -m nvae_jax.main --config configs/mnist_bench.py --mode prepare
Command: python -m nvae_jax.tools.benchmark --config configs/mnist_bench.py --what train,sample
Hardware and time: any; the benchmark uses images of random bytes and needs no data.
"""

from ml_collections import ConfigDict

from nvae_jax.configs import mnist


def get_config() -> ConfigDict:
    """`mnist` with batches of 16."""
    config = mnist.get_config()
    config.training.batch_size = 16
    return config
