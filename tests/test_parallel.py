import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from nvae_jax.parallel import (
    SHARDS,
    batch_sharding,
    check_batch_size,
    jit_on,
    keep_compiled_programs,
    make_mesh,
    replicated,
    shard_batch,
    state_sharding,
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


def test_a_batch_in_parts_must_divide_too():
    check_batch_size(make_mesh(), 32, "training.batch_size", parts=4)
    message = r"batch_size is 24; .* devices \(8\) times training\.accumulation_steps \(2\)$"
    with pytest.raises(ValueError, match=message):
        check_batch_size(make_mesh(), 24, "training.batch_size", parts=2)


def test_shards_that_do_not_divide_the_devices_are_refused_by_name():
    with pytest.raises(ValueError, match=r"^training\.parameter_shards is 3; .* \(8\)$"):
        make_mesh(parameter_shards=3)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((3, 3, 64, 128), (None, None, None, SHARDS)),
        ((5, 3, 3, 128, 30), (None, None, None, SHARDS)),  # 30 outputs do not divide by 4
        ((4, 5, 5, 1, 1023), ()),  # nor does anything but the groups, which stay together
        ((3, 3, 4, 8), ()),  # too small to be worth it
        ((), ()),
    ],
)
def test_large_kernels_are_divided_and_groups_stay_whole(shape, spec):
    mesh = make_mesh(parameter_shards=4)
    sharding = state_sharding(mesh, {"kernel": jax.ShapeDtypeStruct(shape, "float32")})["kernel"]
    assert sharding == NamedSharding(mesh, PartitionSpec(*spec))


def test_without_shards_everything_is_everywhere():
    mesh = make_mesh()
    large = jax.ShapeDtypeStruct((1024, 1024), "float32")
    assert state_sharding(mesh, large) == replicated(mesh)


def test_compiled_programs_are_kept_where_the_user_says(monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    least_before = jax.config.jax_persistent_cache_min_compile_time_secs
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        # Programs for other numbers of cores are others.
        for cores in ({0}, {0, 5, 7}):
            monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: cores, raising=False)
            keep_compiled_programs()
            folder = tmp_path / "nvae_jax" / f"xla_{len(cores)}_cores"
            assert jax.config.jax_compilation_cache_dir == str(folder)
            assert jax.config.jax_persistent_cache_min_compile_time_secs == 0  # small ones too
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
        jax.config.update("jax_compilation_cache_dir", "elsewhere")
        monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "7")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 7.0)
        keep_compiled_programs()
        assert jax.config.jax_compilation_cache_dir == "elsewhere"
        assert jax.config.jax_persistent_cache_min_compile_time_secs == 7
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", least_before)


def test_convolutions_on_cpu_use_all_cores():
    """XLA leaves them to a library that does not divide these, unless told otherwise."""

    def convolve(x, kernel):
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dimensions)

    x, kernel = np.ones((4, 16, 16, 64), np.float32), np.ones((3, 3, 64, 64), np.float32)

    def compiled(jitted):
        return jitted.lower(x, kernel).compile().as_text()

    assert "ynn_fusion" in compiled(jax.jit(convolve))
    assert "ynn_fusion" not in compiled(jit_on(make_mesh(jax.devices()[:1]), convolve))
