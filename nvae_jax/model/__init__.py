"""The networks in Flax Linen, NVAE and those it is compared with. Arrays are NHWC, kernels HWIO."""

from nvae_jax.model.architecture import ModelConfig
from nvae_jax.model.families import variable_shapes
from nvae_jax.model.nvae import NVAE
from nvae_jax.model.vae import VAE, Latents, VAEConfig, VAEOutput

__all__ = ["NVAE", "VAE", "Latents", "ModelConfig", "VAEConfig", "VAEOutput", "variable_shapes"]
