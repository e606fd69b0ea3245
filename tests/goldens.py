"""Numbers that the official implementation computed, in our layout; see goldens/README.md."""

import functools
import json
from pathlib import Path

import numpy as np

VALUES, GRADIENTS = 1e-5, 1e-4  # tolerances, relative to the largest true value


@functools.cache
def load(name):
    """All arrays of a file, by name."""
    with np.load(Path(__file__).parent / "goldens" / f"{name}.npz") as arrays:
        return dict(arrays)


def under(name, prefix):
    """The arrays of a file whose names start with `prefix/`, by the rest of their names."""
    prefix += "/"
    return {k.removeprefix(prefix): v for k, v in load(name).items() if k.startswith(prefix)}


def from_json(array):
    return json.loads(str(array))


def nhwc(array):
    return np.moveaxis(array, 1, -1)


def variables(entries, state_dict):
    """Our variables from official tensors, placed by `nvae_jax.interop.layout`."""
    tree = {}
    for entry in entries:
        *path, leaf = entry.path
        place = functools.reduce(lambda node, name: node.setdefault(name, {}), path, tree)
        place[leaf] = entry.to_ours(state_dict[entry.official.removeprefix(".")])
    return tree


def conv_params(state_dict, name=""):
    """Our parameters of the weight-normalised convolution `name` (with its dot) of a state dict."""
    return {
        "kernel": state_dict[f"{name}weight"].transpose(2, 3, 1, 0),
        "log_gain": state_dict[f"{name}log_weight_norm"].reshape(-1),
        "bias": state_dict[f"{name}bias"],
    }


def assert_close(actual, expected, tolerance=VALUES):
    """Asserts that no value is off by more than `tolerance` times the largest expected one."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())
