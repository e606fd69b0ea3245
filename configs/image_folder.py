"""Your own images: any folder of them, at 64×64.

Command: python -m nvae_jax.main --config configs/image_folder.py --config.data.path=PHOTOS
--workdir DIR; nothing has to be prepared.
Other sizes: --config.data.size=128; docs/data.md has all options. Sizes are multiples of 8 with
this model.
Hardware: one GPU. The first start reads every file once, to find those that are broken.
Result: depends on the images. The log says what independent pixels achieve on them.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """17 groups over 3 scales, of half the width of the paper's model of CelebA."""
    config = default.get_config("image_folder")
    config.data.update(size=64, flip=True)
    config.model.update(
        num_scales=3,
        num_groups=10,
        adaptive_groups=True,
        num_flows=1,
    )
    config.training.update(
        epochs=200,
        batch_size=32,
        regularization=1e-1,
    )
    return config
