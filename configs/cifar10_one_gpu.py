"""CIFAR-10 as in the paper, on one GPU.

Data: python -m nvae_jax.main --config configs/cifar10_one_gpu.py --mode prepare
Command: python -m nvae_jax.main --config configs/cifar10_one_gpu.py --workdir DIR
Hardware and time: one GPU with the memory of one of the paper's, for it sees 32 images at a time,
as each of those did; the paper used 8 V100s for 55 hours.
Memory: 25.1 GiB by the TPU compiler's count for one chip (nvae_jax.tools.aot with --topology
v5p:1x1x1 and JAX_OPTIMIZATION_LEVEL=O0); --config.model.remat=cell requires less.
Result: 2.91 bits/dim in the paper.
"""

from ml_collections import ConfigDict

from nvae_jax.configs import cifar10


def get_config() -> ConfigDict:
    """The paper's batch of 256 in 8 parts, one after the other."""
    config = cifar10.get_config()
    config.model.dtype = "bfloat16"
    config.training.accumulation_steps = 8
    return config
