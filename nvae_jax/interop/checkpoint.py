"""Reading an official `checkpoint.pt`, the one place that needs PyTorch."""

from __future__ import annotations

import argparse
import dataclasses
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from nvae_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class OfficialCheckpoint:
    """The parts of an official checkpoint that an import needs, tensors as NumPy arrays.

    Attributes:
      state_dict: the model's, in its own order.
      args: the command-line arguments of the run by name.
      optimizer: the optimiser's state dict; None: not saved.
      step: updates so far; None: not saved.
    """

    state_dict: dict[str, np.ndarray]
    args: dict[str, Any]
    optimizer: dict[str, Any] | None
    step: int | None


def read_checkpoint(path: str | os.PathLike[str]) -> OfficialCheckpoint:
    """Reads a checkpoint without executing anything in it.

    Tensors, plain values and the one class that official checkpoints need, `argparse.Namespace`,
    are read. Arrays are views of the file where its format allows it, so keep it in place.

    Raises:
      ConfigError: PyTorch is not installed, or the file is missing or damaged, asks for more, or is
        not a checkpoint of a training run.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise ConfigError(f"{path} does not exist; allowed: an official checkpoint.pt")
    try:
        import torch
    except ImportError as error:
        raise ConfigError(
            "reading official checkpoints requires PyTorch: pip install 'nvae-jax[torch]'"
        ) from error

    def convert(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.detach().numpy()
        if isinstance(value, Mapping):
            return {key: convert(item) for key, item in value.items()}
        return value

    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            # The format before PyTorch 1.6 is no zip file and cannot be mapped.
            mapped = zipfile.is_zipfile(path)
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        for name in ("state_dict", "args"):
            if not isinstance(content, Mapping) or name not in content:
                raise ConfigError(
                    f"{path} is not a checkpoint of an official training run: no {name}"
                )
        args, step = content["args"], content.get("global_step")
        return OfficialCheckpoint(
            state_dict=dict(convert(content["state_dict"])),
            args=dict(vars(args) if isinstance(args, argparse.Namespace) else args),
            optimizer=convert(content.get("optimizer")),
            step=None if step is None else int(step),
        )
    except ConfigError:
        raise
    except pickle.UnpicklingError as error:
        asks = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {asks[1]}" if asks else str(error).strip().splitlines()[-1]
        raise ConfigError(
            f"{path} is refused, and nothing in it was run: {reason}; allowed: tensors, plain "
            "values and argparse.Namespace"
        ) from error
    except Exception as error:  # of many kinds, depending on where the damage is
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{path} is damaged or not a PyTorch file: {reason}") from error
