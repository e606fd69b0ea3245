"""Inception's weights of December 2015, from a file or an address that the user names.

Two formats are known: TensorFlow's frozen graph (`classify_image_graph_def.pb`, or the archive
`inception-2015-12-05.tgz` that holds it), and the state dict of pytorch-fid
(`pt_inception-2015-12-05-6726825d.pth`), which requires PyTorch to read.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import re
import tarfile
import urllib.parse
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nvae_jax.data.download import fetch
from nvae_jax.errors import ConfigError, importing, reading, require
from nvae_jax.evaluation.inception import feature_shapes
from nvae_jax.user_cache import cache_folder

EPSILON = 1e-3  # of its batch norms
GRAPH = "classify_image_graph_def.pb"  # in the archive
LARGEST = 1 << 30  # bytes, ten times the true files'

# Convolutions of a block in the frozen graph, and what we call them.
_A = {
    "conv": "branch1x1",
    "tower/conv": "branch5x5_1",
    "tower/conv_1": "branch5x5_2",
    "tower_1/conv": "branch3x3dbl_1",
    "tower_1/conv_1": "branch3x3dbl_2",
    "tower_1/conv_2": "branch3x3dbl_3",
    "tower_2/conv": "branch_pool",
}
_B = {
    "conv": "branch3x3",
    "tower/conv": "branch3x3dbl_1",
    "tower/conv_1": "branch3x3dbl_2",
    "tower/conv_2": "branch3x3dbl_3",
}
_C = {
    "conv": "branch1x1",
    "tower/conv": "branch7x7_1",
    "tower/conv_1": "branch7x7_2",
    "tower/conv_2": "branch7x7_3",
    "tower_1/conv": "branch7x7dbl_1",
    "tower_1/conv_1": "branch7x7dbl_2",
    "tower_1/conv_2": "branch7x7dbl_3",
    "tower_1/conv_3": "branch7x7dbl_4",
    "tower_1/conv_4": "branch7x7dbl_5",
    "tower_2/conv": "branch_pool",
}
_D = {
    "tower/conv": "branch3x3_1",
    "tower/conv_1": "branch3x3_2",
    "tower_1/conv": "branch7x7x3_1",
    "tower_1/conv_1": "branch7x7x3_2",
    "tower_1/conv_2": "branch7x7x3_3",
    "tower_1/conv_3": "branch7x7x3_4",
}
_E = {
    "conv": "branch1x1",
    "tower/conv": "branch3x3_1",
    "tower/mixed/conv": "branch3x3_2a",
    "tower/mixed/conv_1": "branch3x3_2b",
    "tower_1/conv": "branch3x3dbl_1",
    "tower_1/conv_1": "branch3x3dbl_2",
    "tower_1/mixed/conv": "branch3x3dbl_3a",
    "tower_1/mixed/conv_1": "branch3x3dbl_3b",
    "tower_2/conv": "branch_pool",
}
_BLOCKS = {
    "mixed": ("Mixed_5b", _A),
    "mixed_1": ("Mixed_5c", _A),
    "mixed_2": ("Mixed_5d", _A),
    "mixed_3": ("Mixed_6a", _B),
    "mixed_4": ("Mixed_6b", _C),
    "mixed_5": ("Mixed_6c", _C),
    "mixed_6": ("Mixed_6d", _C),
    "mixed_7": ("Mixed_6e", _C),
    "mixed_8": ("Mixed_7a", _D),
    "mixed_9": ("Mixed_7b", _E),
    "mixed_10": ("Mixed_7c", _E),
}
GRAPH_NAMES = {
    "conv": "Conv2d_1a_3x3",
    "conv_1": "Conv2d_2a_3x3",
    "conv_2": "Conv2d_2b_3x3",
    "conv_3": "Conv2d_3b_1x1",
    "conv_4": "Conv2d_4a_3x3",
} | {
    f"{scope}/{path}": f"{block}.{name}"
    for scope, (block, names) in _BLOCKS.items()
    for path, name in names.items()
}


def load_weights(source: str, sha256: str | None = None) -> tuple[dict, str]:
    """The network's parameters from a file, or an address, which is downloaded once.

    Args:
      source: a path, or an http(s) address.
      sha256: of the file, hexadecimal; an address needs it.

    Returns: parameters of `inception.Inception`, and the file's SHA-256.

    Raises:
      ConfigError: the file is missing or broken, has another checksum or an unknown format, or
        lacks a layer; or the address cannot be reached.
    """
    is_address = re.match(r"https?://", source)
    path = Path(urllib.parse.urlsplit(source).path if is_address else source)
    readers = {".pb": _read_graph, ".tgz": _read_archive, ".pth": _read_state_dict}
    require("weights", source, path.suffix in readers, f"files of {', '.join(readers)}")
    if is_address:
        is_digest = re.fullmatch("[0-9a-fA-F]{64}", sha256 or "")
        require("weights_sha256", sha256, bool(is_digest), "the file's SHA-256, with an address")
        path = _download(source, path.name, str(sha256).lower())
    allowed = f"a whole file of the kind that its suffix {path.suffix} says"
    # Readers of damaged files raise all kinds of exceptions, pickle and protobuf among them.
    with reading("weights", source, allowed, Exception):
        digest = _sha256(path)
        expected = sha256 is None or digest == sha256.lower()
        require("weights_sha256", sha256, expected, f"{digest}, which {path} has")
        return readers[path.suffix](path), digest


def _download(address: str, name: str, sha256: str) -> Path:
    """The file of that checksum behind an address, from the user's cache folder."""
    cache = cache_folder("weights")
    require("HOME", None, cache is not None, "a home folder, or XDG_CACHE_HOME, for downloads")
    path = Path(cache or "", sha256[:16], name)
    if not path.exists():
        # Its own name, because several processes may do so at the same time.
        own = path.with_name(f"{name}.{os.getpid()}")
        try:
            allowed = f"an address of a file of at most {LARGEST} bytes that can be reached"
            with reading("weights", address, allowed, ValueError, http.client.HTTPException):
                fetch(address, own, largest=LARGEST)
            digest = _sha256(own)
            require("weights_sha256", sha256, digest == sha256, f"{digest}, which {address} has")
            own.replace(path)
        finally:
            for left in (own, own.with_name(f"{own.name}.part")):
                left.unlink(missing_ok=True)
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_state_dict(path: Path) -> dict:
    import torch

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            _check_size(path, sum(entry.file_size for entry in archive.infolist()))
    state = torch.load(path, map_location="cpu", weights_only=True)
    return from_state_dict({name: x.numpy() for name, x in state.items()})


def from_state_dict(state: Mapping[str, np.ndarray]) -> dict:
    """Parameters from arrays under pytorch-fid's names; its classifier is left out.

    Raises:
      ConfigError: one is missing or has another shape.
    """
    norms = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}

    def layer(name: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        kernel = state[f"{name}.conv.weight"].transpose(2, 3, 1, 0)
        return kernel, {ours: state[f"{name}.bn.{theirs}"] for ours, theirs in norms.items()}

    return _fold(layer)


def _check_size(path: Path, size: int) -> None:
    require(f"bytes in {path}", size, size <= LARGEST, f"at most {LARGEST}")


class _Unpacked(gzip.GzipFile):
    """What is in a compressed file, as long as it is not larger than any true one."""

    def read(self, size: int | None = -1) -> bytes:
        block = super().read(size)
        _check_size(Path(str(self.name)), self.tell())
        return block


def _read_archive(path: Path) -> dict:
    with _Unpacked(path) as unpacked, tarfile.open(fileobj=unpacked, mode="r|") as archive:
        for entry in archive:
            _check_size(path, entry.size)
            if entry.name == GRAPH and entry.isfile():
                return from_graph(archive.extractfile(entry).read())  # type: ignore[union-attr]
    raise ConfigError(f"weights is {str(path)!r}; allowed: archives with {GRAPH}")


def _read_graph(path: Path) -> dict:
    return from_graph(path.read_bytes())


def from_graph(content: bytes) -> dict:
    """Parameters from a frozen TensorFlow graph.

    Raises:
      ConfigError: a layer is missing or has another shape, or TensorFlow cannot be imported.
    """
    with importing("tensorflow", "reading a frozen graph of TensorFlow"):
        from tensorflow import make_ndarray
        from tensorflow.core.framework.graph_pb2 import GraphDef

    nodes = {node.name: node for node in GraphDef.FromString(content).node}
    ours = {name: scope for scope, name in GRAPH_NAMES.items()}

    def constant(name: str) -> np.ndarray:
        node = nodes[name.split(":")[0]]
        while node.op != "Const":
            node = nodes[node.input[0].split(":")[0]]  # an Identity or a check of the values
        return make_ndarray(node.attr["value"].tensor)

    def layer(name: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        norm = nodes[f"{ours[name]}/batchnorm"]  # input, mean, variance, beta, gamma
        mean, var, bias, scale = (constant(x) for x in norm.input[1:5])
        if not norm.attr["scale_after_normalization"].b:
            scale = np.ones_like(scale)
        kernel = constant(f"{ours[name]}/conv2d_params")
        return kernel, {"scale": scale, "bias": bias, "mean": mean, "var": var}

    return _fold(layer)


def _fold(layer: Any) -> dict:
    """Parameters from a function from a layer's name to its kernel (H, W, I, O) and batch norm."""
    params = {}
    for name, shapes in feature_shapes().items():
        try:
            kernel, norm = layer(name)
        except KeyError as error:
            raise ConfigError(f"the weights lack {error} of the layer {name}") from error
        shape = shapes["kernel"].shape
        require(f"shape of {name} in the weights", kernel.shape, kernel.shape == shape, str(shape))
        factor = norm["scale"] / np.sqrt(norm["var"].astype(np.float64) + EPSILON)
        params[name] = {
            "kernel": np.float32(kernel * factor),
            "bias": np.float32(norm["bias"] - norm["mean"] * factor),
        }
    return params
