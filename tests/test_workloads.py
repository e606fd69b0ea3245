import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvae_jax.data.loading import LoadingConfig
from nvae_jax.data.sources import Dataset
from nvae_jax.measuring.compiled import compile_for
from nvae_jax.measuring.workloads import compilation, load, random_batch


def test_random_batch_is_the_same_every_time_and_as_the_loader_makes_it():
    shapes = {"image": (3, 4, 4, 1), "index": (3,), "epoch": (3,)}
    dtypes = {"image": np.uint8, "index": np.int32, "epoch": np.int32}
    wanted = {name: jax.ShapeDtypeStruct(shapes[name], dtypes[name]) for name in shapes}
    batch, again = random_batch(wanted), random_batch(wanted)
    for name, x in batch.items():
        assert (x.shape, x.dtype) == (shapes[name], dtypes[name])
        np.testing.assert_array_equal(again[name], x)
    assert len(np.unique(batch["image"])) > 30
    assert batch["index"].tolist() == [0, 1, 2]


def test_work_and_memory_of_a_compiled_function():
    x, y = jnp.ones((8, 16)), jnp.ones((16, 4))
    product = compile_for(jax.jit(jnp.matmul), x, y, devices=2)
    np.testing.assert_array_equal(product.call(x, y), np.full((8, 4), 16.0))
    assert product.flops == 2 * 8 * 16 * 4 / 2
    assert product.traffic.bytes == 4 * (8 * 16 + 16 * 4 + 8 * 4)
    assert product.memory >= product.traffic.bytes
    assert product.counts == {
        "flops": product.flops,
        "bytes": product.traffic.bytes,
        "memory": product.memory,
    }


def test_compilation_is_measured_with_an_empty_cache_and_a_full_one():
    events = []
    jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
    x = jax.ShapeDtypeStruct((3,), jnp.float32)
    program = types.SimpleNamespace(
        init=jax.jit(lambda x, seed: jnp.sin(x) * 3 + seed),
        update=jax.jit(lambda state, x: state + jnp.cos(x)),
        batch=x,
        state=x,
    )
    before = jax.config.jax_compilation_cache_dir
    rows = compilation(types.SimpleNamespace(program=program))
    assert [row.name for row in rows] == [
        f"{name}: {part}, {cache} cache"
        for cache in ("empty", "full")
        for name in ("init", "update")
        for part in ("trace", "compile")
    ]
    assert all(row.median > 0 for row in rows)
    assert jax.config.jax_compilation_cache_dir == before
    cache = [event.rpartition("/")[2] for event in events if "/cache_" in event]
    assert cache == ["cache_misses"] * 2 + ["cache_hits"] * 2


def test_loading_is_measured_in_seconds_of_a_batch():
    images = np.zeros((64, 4, 4, 1), np.uint8)
    dataset = Dataset("zeros", (4, 4, 1), train=images, test=images)
    (row,) = load(dataset, LoadingConfig(), 8, seed=0, repeats=2, seconds=0.05)
    assert (row.what, row.name, row.images) == ("load", "batch", 8)
    assert len(row.seconds) == 2
    assert row.rate == pytest.approx(8 / row.median)
    assert 0 < row.median < 1
