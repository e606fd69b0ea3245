"""How images are read: the section `loading` of a configuration."""

from __future__ import annotations

import dataclasses

from nvae_jax.errors import require


@dataclasses.dataclass(frozen=True)
class LoadingConfig:
    """The section `loading`; what is in the batches does not depend on it.

    Raises:
      ConfigError: a value is impossible; the message names the field.
    """

    num_workers: int = 0  # processes that read; 0: threads of the training process read
    prefetch: int = 2  # batches kept ready (by each worker), and threads where reading is slow

    def __post_init__(self):
        for name, least in (("num_workers", 0), ("prefetch", 1)):
            value = getattr(self, name)
            require(f"loading.{name}", value, least <= value <= 1024, f"{least} to 1024")
