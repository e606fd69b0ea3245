"""The modes by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nvae_jax.modes.codes import CodesOptions, codes
from nvae_jax.modes.compress import CompressOptions, compress
from nvae_jax.modes.decode import DecodeOptions, decode
from nvae_jax.modes.decompress import DecompressOptions, decompress
from nvae_jax.modes.edit import EditOptions, edit
from nvae_jax.modes.encode import EncodeOptions, encode
from nvae_jax.modes.evaluate import EvaluateOptions, evaluate
from nvae_jax.modes.export import ExportOptions, export
from nvae_jax.modes.fid import FIDOptions, fid
from nvae_jax.modes.interpolate import InterpolateOptions, interpolate
from nvae_jax.modes.neighbors import NeighborsOptions, neighbors
from nvae_jax.modes.reconstruct import ReconstructOptions, reconstruct
from nvae_jax.modes.sample import SampleOptions, sample
from nvae_jax.modes.view import ViewOptions, view

# What can be asked of a trained model: the options of each mode, and what it does.
MODES: dict[str, tuple[type, Callable[..., Any]]] = {
    "evaluate": (EvaluateOptions, evaluate),
    "sample": (SampleOptions, sample),
    "codes": (CodesOptions, codes),
    "encode": (EncodeOptions, encode),
    "decode": (DecodeOptions, decode),
    "reconstruct": (ReconstructOptions, reconstruct),
    "interpolate": (InterpolateOptions, interpolate),
    "edit": (EditOptions, edit),
    "neighbors": (NeighborsOptions, neighbors),
    "fid": (FIDOptions, fid),
    "export": (ExportOptions, export),
    "view": (ViewOptions, view),
    "compress": (CompressOptions, compress),
    "decompress": (DecompressOptions, decompress),
}
