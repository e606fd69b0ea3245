"""Residual cells: the official implementation's numbers, and what those do not reach."""

import chex
import goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from nvae_jax.interop.layout import cell_entries
from nvae_jax.model.cells import (
    OPERATIONS,
    Cell,
    InvertedResidual,
    Skip,
    SqueezeExcite,
    upsample_bilinear,
    upsample_nearest,
)

TABLE = {entry["key"]: entry for entry in goldens.from_json(goldens.load("cells")["table"])}
DATA_INITIALISED = [key for key in TABLE if "res_elu" in key]
RESIZE = {1: "same", 2: "down", -1: "up"}


def golden_cell(key):
    """The cell of a golden entry, the entries of its state dict and the entry's arrays."""
    table = TABLE[key]
    resize = RESIZE[table["stride"]]
    operations = tuple(table["arch"])
    form = {"down": resize == "down", "up": resize == "up", "squeeze_excite": True}
    entries = list(cell_entries("", (), None, operations, **form))
    images = ("x", "y_eval", "y_train", "cotangent", "grad_x")
    found = goldens.under("cells", key)
    arrays = {name: goldens.nhwc(found[name]) for name in images if name in found}
    return Cell(operations, resize), entries, arrays


def test_the_goldens_have_every_operation():
    assert {entry["op"] for entry in TABLE.values()} == set(OPERATIONS)


@pytest.mark.parametrize("key", TABLE)
def test_cell_agrees_with_the_official_one(key):
    cell, entries, arrays = golden_cell(key)
    state_dict = goldens.under("cells", f"{key}/sd") | goldens.under("cells", f"{key}/after")
    after = goldens.variables(entries, state_dict)
    before = after
    if key not in DATA_INITIALISED:
        before = goldens.variables(entries, goldens.under("cells", f"{key}/sd"))

    @jax.jit
    def passes(variables, x, cotangent):
        def train(x):
            return cell.apply(variables, x, True, mutable=["batch_stats"])

        y, vjp, updated = jax.vjp(train, x, has_aux=True)
        return cell.apply(variables, x, False), y, vjp(cotangent)[0], updated

    y_eval, y_train, grad_x, updated = passes(before, arrays["x"], arrays["cotangent"])
    goldens.assert_close(y_train, arrays["y_train"])
    goldens.assert_close(grad_x, arrays["grad_x"], goldens.GRADIENTS)
    if key in DATA_INITIALISED:
        # No batch norm: both modes are the same.
        np.testing.assert_array_equal(y_eval, y_train)
    else:
        goldens.assert_close(y_eval, arrays["y_eval"])
        expected = {"batch_stats": after["batch_stats"]}
        jax.tree.map(goldens.assert_close, updated, expected)


@pytest.mark.parametrize("key", DATA_INITIALISED)
def test_data_initialisation_agrees_with_the_official_one(key):
    cell, entries, arrays = golden_cell(key)
    state_dict = goldens.under("cells", f"{key}/sd")
    expected = goldens.variables(entries, state_dict | goldens.under("cells", f"{key}/after"))
    given = goldens.variables(entries, state_dict)
    for j in range(2):
        # Only the kernels of the operations are given: the rest must come from the first batch.
        given["params"][f"op_{j}"] = {
            "conv": {"kernel": given["params"][f"op_{j}"]["conv"]["kernel"]}
        }

    @jax.jit
    def first_pass(variables, x):
        rngs = {"params": jax.random.key(0)}
        return cell.apply(variables, x, True, mutable=["params"], rngs=rngs)

    y, updated = first_pass(given, arrays["x"])
    goldens.assert_close(y, arrays["y_train"])
    jax.tree.map(goldens.assert_close, updated, expected)

    # What is there already, as in a restored model, the next batch leaves as it is.
    _, again = first_pass(updated, 2 * arrays["x"])
    chex.assert_trees_all_equal(again, updated)


def test_squeeze_excite_agrees_with_the_official_one():
    arrays = goldens.under("cells", "se")
    params = {
        name: {"kernel": arrays[f"sd/se.{i}.weight"].T, "bias": arrays[f"sd/se.{i}.bias"]}
        for name, i in (("squeeze", 0), ("excite", 2))
    }
    y = SqueezeExcite().apply({"params": params}, goldens.nhwc(arrays["x"]))
    goldens.assert_close(y, goldens.nhwc(arrays["y"]))


def test_halving_skip_agrees_with_the_official_one():
    arrays = goldens.under("cells", "factorized")
    params = {f"conv_{i}": goldens.conv_params(arrays, f"sd/conv_{i + 1}.") for i in range(4)}
    y = Skip(10, "down").apply({"params": params}, goldens.nhwc(arrays["x"]))
    goldens.assert_close(y, goldens.nhwc(arrays["y"]))


def test_swish_agrees_with_the_official_one():
    arrays = goldens.under("cells", "swish")
    y, dy = jax.vmap(jax.value_and_grad(nn.swish))(arrays["x"])
    goldens.assert_close(y, arrays["y"])
    goldens.assert_close(dy, arrays["dy"], goldens.GRADIENTS)


def test_bilinear_upsampling_agrees_with_the_official_one():
    arrays = goldens.under("cells", "upsample")
    goldens.assert_close(upsample_bilinear(goldens.nhwc(arrays["x"])), goldens.nhwc(arrays["y"]))


def test_bilinear_upsampling_keeps_corners_and_straight_lines():
    rows, columns = np.mgrid[:3, :5].astype(np.float32)
    y = upsample_bilinear((3 * rows - columns)[None, :, :, None])[0, :, :, 0]
    fine_rows, fine_columns = np.mgrid[0:2:6j, 0:4:10j]
    np.testing.assert_allclose(y, 3 * fine_rows - fine_columns, atol=1e-5)


def test_a_single_pixel_is_upsampled_to_four():
    np.testing.assert_array_equal(upsample_bilinear(jnp.full((1, 1, 1, 2), 7.0)), 7.0)


def test_nearest_upsampling_repeats_pixels():
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 2)).astype(np.float32)
    y, vjp = jax.vjp(upsample_nearest, x)
    np.testing.assert_array_equal(y, x.repeat(2, axis=1).repeat(2, axis=2))
    cotangent = np.random.default_rng(1).normal(size=y.shape).astype(np.float32)
    blocks = cotangent.reshape(2, 3, 2, 4, 2, 2).sum((2, 4))
    np.testing.assert_allclose(vjp(cotangent)[0], blocks, atol=1e-5)


def test_upsampling_late_is_upsampling_first():
    # The paper upsamples before the first batch norm; statistics then count every pixel four times.
    make = {"features": 4, "expansion": 3, "kernel_size": 3, "groups": 0}
    late, literal = InvertedResidual(resize="up", **make), InvertedResidual(resize="same", **make)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 5, 4)).astype(np.float32)
    shapes = jax.eval_shape(lambda: late.init(jax.random.key(0), x, True))
    variables = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(s.dtype), shapes)

    @jax.jit
    def passes(variables, x):
        upsampled = upsample_nearest(x)
        mutable = ["batch_stats"]
        return (
            late.apply(variables, x, True, mutable=mutable),
            literal.apply(variables, upsampled, True, mutable=mutable),
        )

    chex.assert_trees_all_close(*passes(variables, x), atol=1e-5)


@pytest.mark.parametrize(
    ("resize", "shape"), [("same", (2, 6, 4, 10)), ("down", (2, 3, 2, 20)), ("up", (2, 12, 8, 5))]
)
@pytest.mark.parametrize("squeeze_excite", [True, False])
def test_shapes_and_dtypes(resize, shape, squeeze_excite):
    x = jnp.zeros((2, 6, 4, 10), jnp.bfloat16)
    cell = Cell(("res_bnswish", "mconv_e3k5g0"), resize, squeeze_excite, jnp.bfloat16)
    y, variables = jax.eval_shape(lambda x: cell.init_with_output(jax.random.key(0), x, True), x)
    chex.assert_shape(y, shape)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    assert ("squeeze_excite" in variables["params"]) == squeeze_excite
    assert ("skip" in variables["params"]) == (resize != "same")


def test_squeeze_excite_has_at_least_four_hidden_units():
    for channels, hidden in [(20, 4), (160, 10)]:
        x = jnp.zeros((1, 2, 2, channels))
        shapes = jax.eval_shape(SqueezeExcite().init, jax.random.key(0), x)["params"]
        chex.assert_shape(shapes["squeeze"]["kernel"], (channels, hidden))


def test_squeeze_excite_sums_its_gradient_in_float32():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.uniform(size=(2, 32, 32, 16)), jnp.bfloat16)
    params = SqueezeExcite().init(jax.random.key(0), x)

    @jax.jit
    def gradient(params, x):
        return jax.grad(lambda p: SqueezeExcite().apply(p, x).astype(jnp.float32).sum())(params)

    # A thousand pixels of one sign, which a sum in bfloat16 would not carry.
    low, high = gradient(params, x), gradient(params, x.astype(jnp.float32))
    for a, b in zip(jax.tree.leaves(low), jax.tree.leaves(high), strict=True):
        assert np.linalg.norm(a - b) <= 1e-4 * np.linalg.norm(b)


def test_dense_layers_start_uniform_within_their_fan_in():
    params = jax.jit(SqueezeExcite().init)(jax.random.key(0), jnp.zeros((1, 2, 2, 256)))["params"]
    for name, fan_in in [("squeeze", 256), ("excite", 16)]:
        for leaf in params[name].values():
            assert abs(leaf).max() <= fan_in**-0.5
        assert abs(params[name]["kernel"]).max() > 0.95 * fan_in**-0.5
