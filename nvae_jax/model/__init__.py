"""The NVAE network in Flax Linen. Arrays are NHWC, kernels HWIO."""

from nvae_jax.model.architecture import ModelConfig
from nvae_jax.model.nvae import NVAE, Latents, NVAEOutput, variable_shapes

__all__ = ["NVAE", "Latents", "ModelConfig", "NVAEOutput", "variable_shapes"]
