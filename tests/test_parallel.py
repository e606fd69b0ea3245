import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from nvae_jax.errors import ConfigError
from nvae_jax.parallel import (
    SHARDS,
    batch_sharding,
    check_batch_size,
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


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("Unknown backend: 'cuda'")])
def test_platforms_that_there_are_not_are_refused(monkeypatch, error):
    def devices():
        raise error

    monkeypatch.setattr(jax, "devices", devices)
    with pytest.raises(ConfigError, match=r"^JAX_PLATFORMS is 'cpu'; allowed: platforms of this m"):
        make_mesh()
    previous = jax.config.jax_platforms
    jax.config.update("jax_platforms", "")
    try:
        with pytest.raises(type(error)):
            make_mesh()
    finally:
        jax.config.update("jax_platforms", previous)


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
