"""The model of `configs/digits.py` on images in NumPy arrays."""

from nvae_jax.configs import default, digits


def get_config():
    config = digits.get_config()
    config.data = default.get_config("numpy_arrays").data
    return config
