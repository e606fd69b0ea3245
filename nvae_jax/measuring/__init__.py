"""How fast programs are, and what compiled programs hold; `nvae_jax.tools` has the commands."""
