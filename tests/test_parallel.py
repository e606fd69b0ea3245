import jax
import numpy as np
import pytest

from nvae_jax.parallel import (
    batch_sharding,
    check_batch_size,
    keep_compiled_programs,
    make_mesh,
    shard_batch,
)


def test_a_batch_is_shared_by_all_devices_in_order():
    mesh = make_mesh()
    batch = {"image": np.arange(16 * 3).reshape(16, 3), "index": np.arange(16)}
    sharded = shard_batch(mesh, batch)
    for name, array in batch.items():
        np.testing.assert_array_equal(sharded[name], array)
        assert sharded[name].sharding == batch_sharding(mesh)
        shards = sorted(sharded[name].addressable_shards, key=lambda s: s.device.id)
        np.testing.assert_array_equal([len(s.data) for s in shards], [2] * 8)
        np.testing.assert_array_equal(shards[3].data, array[6:8])


def test_a_batch_that_devices_cannot_share_is_refused_by_name():
    check_batch_size(make_mesh(), 24, "training.batch_size")
    message = r"^training\.batch_size is 20; allowed: multiples .* \(8\)$"
    with pytest.raises(ValueError, match=message):
        check_batch_size(make_mesh(), 20, "training.batch_size")


def test_compiled_programs_are_kept_where_the_user_says(monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        keep_compiled_programs()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "nvae_jax" / "xla")
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
        jax.config.update("jax_compilation_cache_dir", "elsewhere")
        keep_compiled_programs()
        assert jax.config.jax_compilation_cache_dir == "elsewhere"
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
