"""Every field of a configuration at its default. The other files start from this one.

A field is set from the command line as `--config.training.seed=1`. What the fields are, and their
defaults, is said where they are declared:

  model     nvae_jax/model/architecture.py, ModelConfig; with model.name = "conv_vae",
            nvae_jax/model/conv_vae.py, ConvVAEConfig; what both have is in nvae_jax/model/vae.py
  data      nvae_jax/data/sources/, a class for every dataset (docs/data.md)
  loading   nvae_jax/data/loading.py, LoadingConfig
  training  nvae_jax/config/training.py, TrainingConfig
  objective nvae_jax/objectives/, a file for every objective

`image_shape`, `border` and `likelihood` follow from the data where they are not given.
Command: python -m nvae_jax.main --config configs/default.py --workdir DIR
"""

from typing import Any

from ml_collections import ConfigDict

from nvae_jax.config.template import run_template


def get_config(
    dataset: str | None = None, family: str = "nvae", objective: str = "elbo"
) -> ConfigDict:
    """A small model of one group; not tuned for anything.

    Args:
      dataset: whose options the section `data` lists; None: photos, with its options unlisted.
      family: of models.
      objective: of training.
    """
    config = run_template(dataset or "photos", family, objective)
    if dataset is None:
        config.data = ConfigDict({"name": "photos"})  # so that another name fits
    config.training.update(epochs=100, batch_size=32)
    return config


def plain_training(learning_rate: float) -> dict[str, Any]:
    """Fields of `training`: Adam at a constant rate, without what is NVAE's.

    That is, without regularisers, L2 and a warm-up of the KL.
    """
    return {
        "optimizer": "adam",
        "learning_rate": learning_rate,
        "min_learning_rate": learning_rate,
        "warmup_epochs": 0,
        "weight_decay": 0.0,
        "regularization": 0.0,
        "kl_warmup": 0.0,
        "kl_constant": 0.0,
    }
