import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIG

from nvae_jax.measuring import operations as module
from nvae_jax.measuring.operations import Place, count_bytes, measure_operations, operations, places

SMALL = dataclasses.replace(CONFIG, image_shape=(16, 16, 1), border=0, num_scales=2, num_blocks=1)


def test_places_are_the_blocks_and_the_scales_of_the_model():
    config = dataclasses.replace(CONFIG, num_blocks=2, num_scales=2, encoder_channels=8)
    assert places(config) == [
        Place(32, 32, 8, 4, expansion=3),
        Place(16, 16, 16, 8, expansion=3),
        Place(8, 8, 32, 16, expansion=6),
        Place(4, 4, 64, 32, expansion=6),
    ]
    assert places(config)[-1].hidden == 192


@pytest.mark.parametrize(
    "operation",
    [operation for operation in operations(SMALL, 2) if len(operation.formulations) > 1],
    ids=lambda operation: operation.name,
)
def test_all_formulations_compute_the_same(operation):
    x = module.draw(operation.arguments)
    (first, first_gradient), *others = operation.formulations.values()
    y = jax.jit(first)(*x)
    for forward, gradient in others:
        np.testing.assert_allclose(jax.jit(forward)(*x), y, rtol=1e-4, atol=1e-5)
        expected = jax.jit(first_gradient)(*x, y)
        found = jax.jit(gradient)(*x, y)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), found, expected
        )


def test_work_of_each_operation_is_counted_exactly(monkeypatch):
    def measured(functions, repeats):
        return {name: [2.0] * repeats for name in functions}

    monkeypatch.setattr(module, "measure", measured)
    rows = {row.name: row for row in measure_operations(SMALL, batch_size=2, repeats=3)}
    # At 8×8 the decoder has 8 channels, 48 of them inside its cells, and there are 2 images.
    pixels = 2 * 8 * 8
    wide = pixels * 48
    flops = {
        "depthwise 5x5, 48": 2 * 25 * wide,
        "conv 3x3, 8": 2 * 9 * pixels * 8 * 8,
        "conv 1x1, 8 to 48": 2 * pixels * 8 * 48,
        "batch norm and swish, 48": 0,
        "squeeze-excite, 8": 2 * 2 * (8 * 4 + 4 * 8),
    }
    kernels = {
        "depthwise 5x5, 48": (wide, 25 * 48, wide),
        "conv 3x3, 8": (pixels * 8, 9 * 8 * 8, pixels * 8),
        "conv 1x1, 8 to 48": (pixels * 8, 8 * 48, wide),
        "batch norm and swish, 48": (wide, 2 * 48, wide),
        "squeeze-excite, 8": (pixels * 8, 8 * 4 + 4 + 4 * 8 + 8, pixels * 8),
    }
    for name, count in flops.items():
        found = {k: row for k, row in rows.items() if k.startswith(f"8x8 {name};")}
        # Of depthwise convolutions there are three formulations, forward and gradient of each.
        assert len(found) in ((6,) if name.startswith("depthwise") else (2, 4))
        x, parameters, y = kernels[name]
        for key, row in found.items():
            gradient = key.endswith("gradient")
            assert row.flops == count * (2 if gradient else 1), key
            moved = 2 * (x + parameters) + y if gradient else x + parameters + y
            assert row.bytes == 4 * moved, key
            assert row.seconds == [2.0] * 3


def test_bytes_of_a_tree():
    shape = jax.ShapeDtypeStruct((3, 5), jnp.bfloat16)
    assert count_bytes({"a": shape, "b": [np.zeros(4, np.uint8)]}) == 34
