"""Checkpoints come back, on any devices, and a kill at any moment harms none of them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nvae_jax.errors import ConfigError
from nvae_jax.workdir import Workdir, orbax
from nvae_jax.workdir.checkpoints import Checkpoints
from nvae_jax.workdir.integrity import NotFiniteError
from nvae_jax.workdir.retention import Keep


class Vectors(NamedTuple):
    left: jax.Array
    unused: None = None


@flax.struct.dataclass
class State:
    step: jax.Array
    params: Any
    optimizer: Any
    vectors: Any


@pytest.fixture
def checkpoints(tmp_path):
    with contextlib.closing(Workdir(tmp_path / "run").checkpoints) as checkpoints:
        yield checkpoints


def sharding(devices: int, *axes: str) -> NamedSharding:
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    return NamedSharding(mesh, PartitionSpec(*axes))


def make_state(step: int = 0, devices: int = 1) -> State:
    params = {
        "kernel": jnp.arange(24.0).reshape(8, 3) + step,
        "scale": jnp.full((8,), step, jnp.bfloat16),
    }
    optimizer = optax.chain(optax.add_decayed_weights(1e-3), optax.adamax(1e-3))
    vectors = [Vectors(jnp.ones(8)), {}]
    state = State(jnp.int32(step), params, optimizer.init(params), vectors)
    return jax.tree.map(lambda x: jax.device_put(x, sharding(devices, *["data"][: x.ndim])), state)


def abstract(tree: Any, devices: int = 1) -> Any:
    """The tree's description, its arrays' first axis over this many devices."""

    def place(x):
        return jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=sharding(devices, *["data"][: x.ndim])
        )

    return jax.tree.map(place, tree)


def assert_trees_equal(actual, expected):
    assert abstract(actual) == abstract(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_a_checkpoint_restores_onto_any_number_of_devices(checkpoints, devices):
    state = make_state(step=5, devices=4)
    checkpoints.save(5, state, {"iterator": {"position": 7}, "groups": (2, 1)})
    checkpoints.close()

    wanted = abstract(state, devices)
    restored, metadata = Checkpoints(checkpoints.folder).restore(wanted)

    assert_trees_equal(restored, state)
    assert metadata == {"iterator": {"position": 7}, "groups": [2, 1]}
    for array, target in zip(jax.tree.leaves(restored), jax.tree.leaves(wanted), strict=True):
        assert array.sharding == target.sharding


def test_the_latest_checkpoints_are_kept(tmp_path):
    checkpoints = Checkpoints(epath.Path(tmp_path), Keep(2))
    assert checkpoints.latest_step() is None
    with pytest.raises(
        ConfigError, match=r"has no checkpoint; allowed: a folder with checkpoints$"
    ):
        checkpoints.restore(abstract(make_state()))
    for step in (1, 5, 9):
        checkpoints.save(step, make_state(step), {"step": step})
    assert checkpoints.latest_step() == 9

    restored, metadata = checkpoints.restore(abstract(make_state()), step=5)
    assert_trees_equal(restored, make_state(5))
    assert metadata == {"step": 5}
    with pytest.raises(ConfigError, match=r"has no checkpoint 1; allowed: 5, 9$"):
        checkpoints.restore(abstract(make_state()), step=1)
    with pytest.raises(ValueError, match="step 9 is not after the latest checkpoint's, 9"):
        checkpoints.save(9, make_state(9), {})
    checkpoints.close()
    with pytest.raises(ValueError, match="max_to_keep is 0"):
        Keep(0)


def test_state_and_metadata_may_change_while_they_are_saved(checkpoints, monkeypatch):
    changed, encode = threading.Event(), json.dumps

    def encode_late(*args, **kwargs):
        in_background = threading.current_thread() is not threading.main_thread()
        assert not in_background or changed.wait(timeout=30)
        return encode(*args, **kwargs)

    monkeypatch.setattr(json, "dumps", encode_late)
    overwrite = jax.jit(lambda x: x + 1, donate_argnums=0)
    state = {"w": jax.device_put(jnp.zeros((512, 512)), sharding(8))}
    metadata = {"seen": [1]}
    checkpoints.save(1, state, metadata)
    metadata["seen"].append(2)
    for _ in range(20):
        state["w"] = overwrite(state["w"])
    changed.set()

    restored, restored_metadata = checkpoints.restore(abstract(state))

    assert (restored["w"] == 0).all()
    assert restored_metadata == {"seen": [1]}


def test_metadata_without_a_json_form_is_refused_at_once(checkpoints):
    with pytest.raises(TypeError, match="not JSON serializable"):
        checkpoints.save(1, make_state(), {"array": np.zeros(3)})
    assert checkpoints.latest_step() is None


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_state_that_is_not_finite_is_not_saved(tmp_path, value, dtype):
    with contextlib.closing(Checkpoints(epath.Path(tmp_path), Keep(1))) as checkpoints:
        checkpoints.save(1, {"a": jnp.ones(3, dtype), "step": jnp.int32(1)}, {})
        bad = {"a": jnp.ones(3, dtype).at[2].set(value), "step": jnp.int32(2)}
        with pytest.raises(NotFiniteError, match=r"step 2 is not finite in a; allowed"):
            checkpoints.save(2, bad, {})
        assert checkpoints.steps() == [1]


KILLED_IN_MID_SAVE = """
import json, os, signal, sys, threading
import jax.numpy as jnp
from etils import epath
from nvae_jax.workdir.checkpoints import Checkpoints
from nvae_jax.workdir.retention import Keep

checkpoints = Checkpoints(epath.Path(sys.argv[1]))
checkpoints.save(1, {"w": jnp.ones(4)}, {})
checkpoints.wait()

module, name = {"json.dumps": (json, "dumps"), "os.rename": (os, "rename")}[sys.argv[2]]
original = getattr(module, name)

def kill(*args, **kwargs):
    if threading.current_thread() is threading.main_thread():
        return original(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(module, name, kill)
checkpoints.save(2, {"w": jnp.zeros(4)}, {})
checkpoints.wait()
"""


# Orbax's background threads encode what they know of the arrays early on; the rename comes last.
@pytest.mark.parametrize("moment", ["json.dumps", "os.rename"])
def test_a_half_written_checkpoint_is_never_seen(checkpoints, moment):
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_IN_MID_SAVE, checkpoints.folder, moment],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    folder = checkpoints.folder
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2.orbax-checkpoint-tmp"]

    wanted = abstract({"w": jnp.ones(4)})
    restored, _ = checkpoints.restore(wanted)
    assert (restored["w"] == 1).all()
    assert checkpoints.latest_step() == 1

    checkpoints.save(2, {"w": jnp.full(4, 2.0)}, {})
    restored, _ = checkpoints.restore(wanted)
    assert (restored["w"] == 2).all()
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


def test_a_part_restores_by_name(checkpoints):
    state = make_state(step=5)
    checkpoints.save(5, state, {})

    wanted = {"params": abstract(state.params), "vectors": abstract(state.vectors)}
    restored, _ = checkpoints.restore(wanted, partial=True)

    assert_trees_equal(restored, {"params": state.params, "vectors": state.vectors})


def test_what_does_not_fit_is_named(checkpoints):
    checkpoints.save(5, {"a": jnp.ones((2, 3)), "b": [jnp.ones(2)], "c": jnp.ones(2)}, {})
    placed = partial(jax.ShapeDtypeStruct, sharding=sharding(1))
    wanted = {
        "a": placed((2, 4), jnp.float32),
        "b": [placed((2,), jnp.bfloat16), placed((2,), jnp.float32)],
        "d": placed((), jnp.int32),
    }

    with pytest.raises(ValueError, match=r"checkpoint 5 in .* in 5 places") as caught:
        checkpoints.restore(wanted)
    named = (
        "a is float32[2, 3]; wanted: float32[2, 4]; b.0 is float32[2]; wanted: bfloat16[2]; "
        "b.1 is not saved; d is not saved; c is saved but not wanted"
    )
    assert str(caught.value).endswith(f"the first of them: {named}")

    with pytest.raises(ValueError, match="c is wanted without a sharding"):
        checkpoints.restore({"c": jax.ShapeDtypeStruct((2,), jnp.float32)}, partial=True)


def test_only_the_first_differences_are_named(checkpoints):
    checkpoints.save(5, {f"a{i}": jnp.ones(2) for i in range(9)}, {})
    with pytest.raises(ValueError, match="in 10 places, the first of them:") as caught:
        checkpoints.restore(abstract({"b": jnp.ones(2)}))
    assert str(caught.value).count(" is ") == 1 + 5


def test_a_damaged_checkpoint_is_refused_by_name(checkpoints, capfd):
    checkpoints.save(5, make_state(5), {})
    checkpoints.close()
    for path in Path(checkpoints.folder / "5" / "state").rglob("*"):
        if path.is_file() and path.name != "_METADATA":
            path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(ConfigError, match=r"the checkpoint .*checkpoints/5 cannot be"):
        checkpoints.restore(abstract(make_state()))
    assert "Traceback" not in capfd.readouterr().err


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/checkpoints cannot be written"):
        Checkpoints(epath.Path(tmp_path / "file" / "checkpoints")).save(1, {"x": np.zeros(2)}, {})


EXAMPLES = int(os.environ.get("NVAE_JAX_EXAMPLES", "30"))


def test_no_flipped_bit_and_no_lost_file_changes_an_array_silently(tmp_path, monkeypatch):
    """What is not found, in files that Orbax writes beside and does not read, changes nothing."""
    monkeypatch.setattr(orbax, "_OTHER_READS", 0.0)
    rng = np.random.default_rng(0)
    # Arrays of less than 1 KiB would be in files of which TensorStore checks every byte.
    state = {f"a{i}": jnp.asarray(rng.normal(size=(32, 32)), jnp.float32) for i in range(4)}
    state["step"] = jnp.int32(5)
    saved = Checkpoints(epath.Path(tmp_path / "saved"))
    saved.save(5, state, {"step": 5})
    saved.close()
    files = [path for path in (tmp_path / "saved").rglob("*") if path.is_file()]
    sizes = np.array([path.stat().st_size for path in files], float)
    cases = [(path, how) for path in files for how in ("deleted", "truncated", "zeroed", "flipped")]
    drawn = rng.choice(len(files), size=EXAMPLES, p=sizes / sizes.sum())
    cases += [(files[i], "flipped") for i in drawn]
    found = 0
    for path, how in cases:
        content = bytearray(path.read_bytes())
        spoilt = bytearray(content)
        if how == "deleted":
            path.unlink()
        elif how == "truncated":
            path.write_bytes(spoilt[: len(spoilt) // 2])
        elif how == "zeroed":
            path.write_bytes(bytes(len(spoilt)))
        elif content:
            spoilt[rng.integers(len(spoilt))] ^= 1 << rng.integers(8)
            path.write_bytes(spoilt)
        with contextlib.closing(Checkpoints(epath.Path(tmp_path / "saved"))) as checkpoints:
            try:
                restored, metadata = checkpoints.restore(abstract(state), 5)
            except ConfigError:
                found += 1
            else:
                assert_trees_equal(restored, state)
                assert metadata == {"step": 5}
        path.write_bytes(content)
    assert found > len(cases) // 4
