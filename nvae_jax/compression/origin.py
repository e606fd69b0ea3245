"""What a file was made with, and whether the same numbers come out here."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import platform

import jax
import jaxlib
import numpy as np

from nvae_jax.compression.coder import library
from nvae_jax.compression.container import Container
from nvae_jax.compression.header import MadeWith
from nvae_jax.compression.layout import check_layout
from nvae_jax.compression.network import Network
from nvae_jax.errors import ConfigError, require
from nvae_jax.evaluation.trained import TrainedModel


def made_with(model: TrainedModel, network: Network) -> MadeWith:
    """What the numbers of a network depend on, and their fingerprint."""
    return MadeWith(
        model=model_hash(model),
        fingerprint=network.fingerprint(),
        dtype=model.config.dtype,
        device=network.device.device_kind,
        machine=platform.machine(),
        jax=jax.__version__,
        jaxlib=jaxlib.version.__version__,
        numpy=np.__version__,
        constriction=importlib.metadata.version(library().__name__),
    )


def network_of(model: TrainedModel, packed: Container, field: str) -> Network:
    """The network that a file was made with, if this model and this machine have it.

    Raises:
      ConfigError: they do not; the message says what differs. Or the file says what no file of the
        model can say.
    """
    made, here = packed.made_with, model_hash(model)
    require(f"the model of {field}", made.model, made.model == here, f"the run's, {here}")
    check_layout(packed, model.config, field)
    network = Network(model, packed.coding.batch_size)
    if network.fingerprint() != made.fingerprint:
        raise ConfigError(
            f"{field} cannot be decoded here: the network computes other numbers; allowed: what it "
            f"was made with{differences(model, network, packed)}"
        )
    return network


def differences(model: TrainedModel, network: Network, packed: Container) -> str:
    """What differs here from what a file was made with, as the end of a message."""
    here = dataclasses.asdict(made_with(model, network))
    differ = [
        f"{name} {value} (here {here[name]})"
        for name, value in dataclasses.asdict(packed.made_with).items()
        if name != "fingerprint" and value != here[name]
    ]
    return f": {', '.join(differ)}" if differ else ", of which all that is written down is the same"


def model_hash(model: TrainedModel) -> str:
    """SHA-256 of the model's configuration and variables, in hexadecimal."""
    fields = dataclasses.asdict(model.config)
    for name in ("remat", "unroll", "dtype"):  # how it runs
        fields.pop(name)
    digest = hashlib.sha256(repr(sorted(fields.items())).encode())
    leaves = jax.tree_util.tree_leaves_with_path(model.variables)
    for path, leaf in sorted((jax.tree_util.keystr(path), leaf) for path, leaf in leaves):
        array = np.asarray(leaf)
        digest.update(f"{path} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
