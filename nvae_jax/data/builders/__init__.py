"""TFDS builders of what TFDS lacks or can no longer build. Importing this registers them.

To be imported inside functions only: it imports TFDS.
"""

from nvae_jax.data.builders.celebahq256 import Celebahq256
from nvae_jax.data.builders.ffhq256 import Ffhq256
from nvae_jax.data.builders.lsun_scenes import LsunScenes
from nvae_jax.data.builders.omniglot28 import Omniglot28

__all__ = ["Celebahq256", "Ffhq256", "LsunScenes", "Omniglot28"]
