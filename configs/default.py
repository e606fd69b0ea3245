"""Every field of a configuration at its default. The other files start from this one.

A field is set from the command line as `--config.training.seed=1`. What the fields are, and their
defaults, is said where they are declared:

  model     nvae_jax/model/architecture.py, ModelConfig
  data      nvae_jax/data/sources/, a class for every dataset (docs/data.md)
  loading   nvae_jax/data/loading.py, LoadingConfig
  training  nvae_jax/config/training.py, TrainingConfig

`image_shape`, `border` and `likelihood` follow from the data where they are not given.
Command: python -m nvae_jax.main --config configs/default.py --workdir DIR
"""

from ml_collections import ConfigDict

from nvae_jax.config.template import run_template


def get_config(dataset: str | None = None) -> ConfigDict:
    """A small model of one group; not tuned for anything.

    Args:
      dataset: whose options the section `data` lists; None: photos, with its options unlisted.
    """
    config = run_template(dataset or "photos")
    if dataset is None:
        config.data = ConfigDict({"name": "photos"})  # so that another name fits
    config.training.update(epochs=100, batch_size=32)
    return config
