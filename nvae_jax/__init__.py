"""NVAE, a deep hierarchical variational autoencoder, in JAX and Flax.

    import nvae_jax

    run = nvae_jax.load("runs/digits")
    images = run.sample(16, temperature=0.8)

`load`, `train` and `Run` are those of `nvae_jax.api`, which is imported when one of them is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nvae_jax.api import Run, load, train

__version__ = "0.1.0"
__all__ = ["Run", "__version__", "load", "train"]


def __getattr__(name: str) -> Any:
    if name in ("Run", "load", "train"):
        from nvae_jax import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
