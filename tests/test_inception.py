"""Inception against the same weights in PyTorch, and from the published formats."""

import functools
import hashlib
import http.server
import threading

import jax
import numpy as np
import pytest

from nvae_jax.evaluation.inception import Inception, feature_shapes, fid_inputs
from nvae_jax.evaluation.inception_weights import (
    GRAPH_NAMES,
    from_graph,
    from_state_dict,
    load_weights,
)


@functools.cache
def random_state():
    """A state dict of pytorch-fid's names, as NumPy arrays; its batch norms do not scale."""
    rng, state = np.random.default_rng(0), {}
    for name, shapes in feature_shapes().items():
        *size, inputs, outputs = shapes["kernel"].shape
        deviation = np.float32(np.sqrt(2 / (np.prod(size) * inputs)))
        kernel = rng.standard_normal((outputs, inputs, *size), np.float32)
        state[f"{name}.conv.weight"] = deviation * kernel
        state[f"{name}.bn.weight"] = np.ones(outputs, np.float32)
        for part, low, high in (("bias", -1, 1), ("running_mean", -1, 1), ("running_var", 0.5, 2)):
            state[f"{name}.bn.{part}"] = np.float32(rng.uniform(low, high, outputs))
    return state


def test_size_of_the_network():
    # Keras's Inception v3: 23,817,352 trainable parameters, 2,049,000 of them the classifier's;
    # its batch norms have a shift and no scale.
    shapes = jax.tree.leaves(feature_shapes())
    assert sum(x.size for x in shapes) == 23_817_352 - 2_049_000
    assert len(shapes) == 2 * 94
    assert set(GRAPH_NAMES.values()) == set(feature_shapes())


def torch_features(state, x):
    """The network as torchvision's documentation and pytorch-fid's describe it; x is NCHW."""
    import torch
    from torch.nn import functional

    def conv(x, name, stride=1, padding=0):
        norm = [f"{name}.bn.{part}" for part in ("running_mean", "running_var", "weight", "bias")]
        x = functional.conv2d(x, state[f"{name}.conv.weight"], stride=stride, padding=padding)
        return torch.relu(functional.batch_norm(x, *[state[part] for part in norm], eps=1e-3))

    def chain(x, name, paddings, stride=1):
        for i, padding in enumerate(paddings, 1):
            x = conv(x, f"{name}_{i}", stride if i == len(paddings) else 1, padding)
        return x

    def pool(x):
        return functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    def down(x):
        return functional.max_pool2d(x, 3, 2)

    row, column = (0, 3), (3, 0)
    x = conv(x, "Conv2d_1a_3x3", 2)
    x = conv(conv(x, "Conv2d_2a_3x3"), "Conv2d_2b_3x3", padding=1)
    x = down(conv(conv(down(x), "Conv2d_3b_1x1"), "Conv2d_4a_3x3"))
    for b in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        parts = [
            conv(x, f"{b}.branch1x1"),
            chain(x, f"{b}.branch5x5", [0, 2]),
            chain(x, f"{b}.branch3x3dbl", [0, 1, 1]),
            conv(pool(x), f"{b}.branch_pool"),
        ]
        x = torch.cat(parts, 1)
    b = "Mixed_6a"
    parts = [conv(x, f"{b}.branch3x3", 2), chain(x, f"{b}.branch3x3dbl", [0, 1, 0], 2), down(x)]
    x = torch.cat(parts, 1)
    for b in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        parts = [
            conv(x, f"{b}.branch1x1"),
            chain(x, f"{b}.branch7x7", [0, row, column]),
            chain(x, f"{b}.branch7x7dbl", [0, column, row, column, row]),
            conv(pool(x), f"{b}.branch_pool"),
        ]
        x = torch.cat(parts, 1)
    b = "Mixed_7a"
    parts = [
        chain(x, f"{b}.branch3x3", [0, 0], 2),
        chain(x, f"{b}.branch7x7x3", [0, row, column, 0], 2),
        down(x),
    ]
    x = torch.cat(parts, 1)
    for b in ("Mixed_7b", "Mixed_7c"):
        pooled = pool(x) if b == "Mixed_7b" else functional.max_pool2d(x, 3, 1, 1)
        single = conv(x, f"{b}.branch3x3_1")
        double = chain(x, f"{b}.branch3x3dbl", [0, 1])
        parts = [
            conv(x, f"{b}.branch1x1"),
            conv(single, f"{b}.branch3x3_2a", padding=(0, 1)),
            conv(single, f"{b}.branch3x3_2b", padding=(1, 0)),
            conv(double, f"{b}.branch3x3dbl_3a", padding=(0, 1)),
            conv(double, f"{b}.branch3x3dbl_3b", padding=(1, 0)),
            conv(pooled, f"{b}.branch_pool"),
        ]
        x = torch.cat(parts, 1)
    return x.mean((2, 3))


def test_features_are_pytorchs(tmp_path):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    state = {name: torch.from_numpy(x) for name, x in random_state().items()}
    for name, x in state.items():  # scales too, which only this format has
        if name.endswith("bn.weight"):
            state[name] = torch.from_numpy(rng.uniform(0.8, 1.2, len(x)).astype(np.float32))
    state |= {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    torch.save(state, tmp_path / "weights.pth")
    params, digest = load_weights(str(tmp_path / "weights.pth"))
    assert digest == hashlib.sha256((tmp_path / "weights.pth").read_bytes()).hexdigest()
    x = rng.uniform(-1, 1, (2, 139, 107, 3)).astype(np.float32)
    with torch.no_grad():
        expected = torch_features(state, torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
    actual = jax.jit(Inception().apply)({"params": params}, x)
    assert expected.std() > 0.1
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_images_are_scaled_as_pytorch_scales_them():
    torch = pytest.importorskip("torch")
    for size in (28, 320):
        images = np.random.default_rng(0).uniform(size=(2, size, size, 1)).astype(np.float32)
        nchw = torch.from_numpy(images).permute(0, 3, 1, 2).expand(2, 3, size, size)
        scaled = torch.nn.functional.interpolate(nchw, (299, 299), mode="bilinear")
        expected = 2 * scaled.permute(0, 2, 3, 1).numpy() - 1
        np.testing.assert_allclose(fid_inputs(images), expected, atol=1e-5)


def test_the_frozen_graph_holds_the_same_parameters():
    pytest.importorskip("tensorflow")
    from tensorflow import make_tensor_proto
    from tensorflow.core.framework.graph_pb2 import GraphDef

    state, graph = random_state(), GraphDef()
    parts = {"moving_mean": "running_mean", "moving_variance": "running_var", "beta": "bias"}
    for scope, name in GRAPH_NAMES.items():
        kernel = graph.node.add(name=f"{scope}/conv2d_params", op="Const")
        array = state[f"{name}.conv.weight"].transpose(2, 3, 1, 0)
        kernel.attr["value"].tensor.CopyFrom(make_tensor_proto(array))
        norm = graph.node.add(name=f"{scope}/batchnorm", op="BatchNormWithGlobalNormalization")
        norm.attr["scale_after_normalization"].b = False
        norm.input.append(f"{scope}/Conv2D")
        for theirs, ours in (*parts.items(), ("gamma", "bias")):  # a gamma that is not used
            constant = graph.node.add(name=f"{scope}/batchnorm/{theirs}", op="Const")
            constant.attr["value"].tensor.CopyFrom(make_tensor_proto(state[f"{name}.bn.{ours}"]))
            norm.input.append(f"{constant.name}:0" if theirs == "beta" else constant.name)
    params = from_graph(graph.SerializeToString())
    jax.tree.map(np.testing.assert_array_equal, params, from_state_dict(state))

    with pytest.raises(ValueError, match=r"lack 'conv/batchnorm' of the layer Conv2d_1a_3x3"):
        from_graph(GraphDef().SerializeToString())


def test_weights_that_lack_or_bend_a_layer_are_refused():
    with pytest.raises(ValueError, match=r"lack 'Conv2d_1a_3x3\.conv\.weight'"):
        from_state_dict({})
    name = "Mixed_7c.branch_pool.conv.weight"
    bent = random_state() | {name: np.zeros((192, 2047, 1, 1), np.float32)}
    with pytest.raises(ValueError, match=r"shape of Mixed_7c\.branch_pool .* is \(1, 1, 2047, 192"):
        from_state_dict(bent)


@pytest.fixture
def address(tmp_path, monkeypatch):
    """An address on this machine that serves `weights.pb`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "weights.pb").write_bytes(b"weights")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=tmp_path / "served")

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/weights.pb"
        server.shutdown()


def test_a_file_of_another_checksum_is_refused(address, tmp_path):
    wrong, right = "0" * 64, hashlib.sha256(b"weights").hexdigest()
    with pytest.raises(ValueError, match="weights_sha256 is None; allowed: the file's SHA-256"):
        load_weights(address)
    with pytest.raises(ValueError, match=r"weights_sha256 is '\.\./\.\./\.\.'"):
        load_weights(address, "../../..")
    with pytest.raises(ValueError, match=r"allowed: files of \.pb, \.tgz, \.pth"):
        load_weights(f"{address}.xyz", right)
    with pytest.raises(ValueError, match=f"weights_sha256 is '{wrong}'; allowed: {right}, which"):
        load_weights(address, wrong)
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]
    # With the right one it is kept, and refused only for its form; then the address is not needed.
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"allowed: a whole file of the kind that its suffix \.pb"
        ):
            load_weights(address, right)
        (tmp_path / "served" / "weights.pb").unlink(missing_ok=True)
    (tmp_path / "local.pb").write_bytes(b"weights")
    with pytest.raises(
        ValueError, match=r"weights_sha256 is .*; allowed: .*, which .*local.pb has"
    ):
        load_weights(str(tmp_path / "local.pb"), wrong)
