"""MNIST as in the paper (appendix A, table 6): 78.01 nats.

Command: python -m nvae_jax.main --config configs/mnist.py --workdir runs/mnist
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """15 groups over 2 scales; the paper used 2 V100s for 21 hours."""
    config = default.get_config()
    config.data.update(name="mnist")
    config.model.update(
        image_shape=(32, 32, 1),
        likelihood="bernoulli",
        border=2,
        num_scales=2,
        num_groups=10,
        adaptive_groups=True,
        num_blocks=2,
        preprocess_cells=3,
        postprocess_cells=3,
    )
    config.training.update(epochs=400, batch_size=400)
    return config
