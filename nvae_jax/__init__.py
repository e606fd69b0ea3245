"""NVAE, a deep hierarchical variational autoencoder, in JAX and Flax."""
