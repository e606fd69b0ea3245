"""MNIST as in the paper (appendix A, table 6).

Data: python -m nvae_jax.main --config configs/mnist.py --mode prepare
Command: python -m nvae_jax.main --config configs/mnist.py --workdir DIR
Hardware and time: the paper's 2 V100s, 21 hours; a batch of 400 on any number of devices.
Result: 78.01 nats in the paper (importance-weighted).
"""

from ml_collections import ConfigDict

from nvae_jax.configs import default


def get_config() -> ConfigDict:
    """15 groups over 2 scales."""
    config = default.get_config("mnist")
    config.model.update(
        num_scales=2,
        num_groups=10,
        adaptive_groups=True,
        num_blocks=2,
        preprocess_cells=3,
        postprocess_cells=3,
    )
    config.training.update(epochs=400, batch_size=400)
    return config
