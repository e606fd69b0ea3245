"""A model's weights as a safetensors file, with the names of its layers.

The format is eight bytes with the length of a JSON object, the object, and the arrays one after the
other (https://github.com/huggingface/safetensors). A weight's name is its place in the model, such
as `decoder.first.kernel`; `mean` and `var` are the running statistics of a batch norm.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from nvae_jax.errors import reading, require
from nvae_jax.model import VAEConfig, variable_shapes

_KINDS = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
_STATISTICS = ("mean", "var")
_ALLOWED = "a whole safetensors file"


def named(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of `params` and `batch_stats` by name."""
    leaves: dict[str, Any] = {}
    for collection in variables.values():
        leaves |= flatten_dict(collection, sep=".")
    return dict(sorted(leaves.items()))


def unnamed(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """`params` and `batch_stats` of leaves by name."""
    statistics = {n: x for n, x in leaves.items() if n.rpartition(".")[2] in _STATISTICS}
    params = {n: x for n, x in leaves.items() if n not in statistics}
    return {
        "params": unflatten_dict(params, sep="."),
        "batch_stats": unflatten_dict(statistics, sep="."),
    }


def to_safetensors(leaves: Mapping[str, Any], description: Mapping[str, str]) -> bytes:
    """The content of a file of float32 arrays by name, and what it says of itself."""
    header: dict[str, Any] = {"__metadata__": dict(description)}
    contents, end = [], 0
    for name, leaf in leaves.items():
        array = np.ascontiguousarray(leaf, "<f4")
        start, end = end, end + array.nbytes
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": (start, end)}
        contents.append(array.tobytes())
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # arrays start at a multiple of eight bytes
    return b"".join([len(text).to_bytes(8, "little"), text, *contents])


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays by name, and what the file says of itself.

    Raises:
      ConfigError: the file is missing or damaged, or has arrays that are no floats.
    """
    broken = (ValueError, KeyError, TypeError, AttributeError)
    with reading("weights", path, _ALLOWED, *broken), open(path, "rb") as file:
        content = file.read()
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        description = header.pop("__metadata__", {})
        arrays = {}
        for name, entry in header.items():
            first, last = (start + offset for offset in entry["data_offsets"])
            kind = np.dtype(_KINDS[entry["dtype"]])
            array = np.frombuffer(content[first:last], kind).reshape(entry["shape"])
            arrays[name] = array.astype(np.float32)
    return arrays, description


def read_weights(config: VAEConfig, path: str | os.PathLike[str]) -> dict[str, Any]:
    """`params` and `batch_stats` of a model from a file that the mode `export` has written.

    Raises:
      ConfigError: the file is missing or damaged, or its weights are another model's or not finite.
    """
    arrays, _ = read_safetensors(path)
    shapes = {name: leaf.shape for name, leaf in named(variable_shapes(config)).items()}
    where = f"in {os.fspath(path)}"
    for name in sorted(set(shapes) | set(arrays)):
        allowed = f"{shapes.get(name, 'not there')}, as this model has it"
        shape = arrays[name].shape if name in arrays else None
        require(f"the shape of {name} {where}", shape, shape == shapes.get(name), allowed)
        finite = bool(np.isfinite(arrays[name]).all())
        require(f"{name} {where}", "not finite", finite, "finite numbers")
    return unnamed(arrays)
