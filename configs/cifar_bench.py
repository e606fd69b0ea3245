"""A small CIFAR-10 model whose speed is measured; not tuned for anything.

Data: python -m nvae_jax.main --config configs/cifar_bench.py --mode prepare
Command: python -m nvae_jax.tools.benchmark --config configs/cifar_bench.py --what train,sample
Hardware and time: any; the benchmark uses images of random bytes and needs no data.
"""

from ml_collections import ConfigDict

from nvae_jax.configs import default


def get_config() -> ConfigDict:
    """Six groups at one scale, one flow pair."""
    config = default.get_config("cifar10")
    config.model.update(num_groups=6, num_flows=1)
    config.training.update(batch_size=16)
    return config
