"""Workdir: what is saved comes back, on any devices, and a kill at any moment harms nothing."""

import contextlib
import json
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
import ml_collections
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image

from nvae_jax.workdir import Workdir, image_grid


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
def workdir(tmp_path):
    with contextlib.closing(Workdir(tmp_path / "run")) as workdir:
        yield workdir


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


def test_config_comes_back(workdir):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        workdir.load_config()
    config = ml_collections.ConfigDict(
        {"model": {"groups": (2, 1), "name": None}, "rate": 1e-2, "steps": 3}
    )
    workdir.save_config(config)
    workdir.save_config(config)

    loaded = workdir.load_config()

    assert loaded.to_dict() == {"model": {"groups": [2, 1], "name": None}, "rate": 1e-2, "steps": 3}
    workdir.save_config(loaded)


def test_another_config_is_refused_and_the_saved_one_kept(workdir):
    workdir.save_config(ml_collections.ConfigDict({"model": {"z": 20, "f": 2}, "rate": 0.1}))

    with pytest.raises(ValueError, match="holds another configuration") as caught:
        workdir.save_config(ml_collections.ConfigDict({"model": {"z": 10, "f": 2}, "seed": None}))

    assert str(caught.value).splitlines()[1:] == [
        "  config.model.z is 10; saved: 20",
        "  config.rate is 'absent'; saved: 0.1",
        "  config.seed is None; saved: 'absent'",
    ]
    assert workdir.load_config().model.z == 20


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_a_checkpoint_restores_onto_any_number_of_devices(workdir, devices):
    state = make_state(step=5, devices=4)
    workdir.save(5, state, {"iterator": {"position": 7}, "groups": (2, 1)})
    workdir.close()

    wanted = abstract(state, devices)
    restored, metadata = Workdir(workdir.path).restore(wanted)

    assert_trees_equal(restored, state)
    assert metadata == {"iterator": {"position": 7}, "groups": [2, 1]}
    for array, target in zip(jax.tree.leaves(restored), jax.tree.leaves(wanted), strict=True):
        assert array.sharding == target.sharding


def test_the_latest_checkpoints_are_kept(tmp_path):
    workdir = Workdir(tmp_path, max_to_keep=2)
    assert workdir.latest_step() is None
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*checkpoints; it holds: none$"):
        workdir.restore(abstract(make_state()))
    for step in (1, 5, 9):
        workdir.save(step, make_state(step), {"step": step})
    assert workdir.latest_step() == 9

    restored, metadata = workdir.restore(abstract(make_state()), step=5)
    assert_trees_equal(restored, make_state(5))
    assert metadata == {"step": 5}
    with pytest.raises(FileNotFoundError, match=r"no checkpoint 1 in .*; it holds: 5, 9$"):
        workdir.restore(abstract(make_state()), step=1)
    with pytest.raises(ValueError, match="step 9 is not after the latest checkpoint's, 9"):
        workdir.save(9, make_state(9), {})
    workdir.close()
    with pytest.raises(ValueError, match="max_to_keep is 0"):
        Workdir(tmp_path, max_to_keep=0)


def test_state_and_metadata_may_change_while_they_are_saved(workdir, monkeypatch):
    changed, encode = threading.Event(), json.dumps

    def encode_late(*args, **kwargs):
        in_background = threading.current_thread() is not threading.main_thread()
        assert not in_background or changed.wait(timeout=30)
        return encode(*args, **kwargs)

    monkeypatch.setattr(json, "dumps", encode_late)
    overwrite = jax.jit(lambda x: x + 1, donate_argnums=0)
    state = {"w": jax.device_put(jnp.zeros((512, 512)), sharding(8))}
    metadata = {"seen": [1]}
    workdir.save(1, state, metadata)
    metadata["seen"].append(2)
    for _ in range(20):
        state["w"] = overwrite(state["w"])
    changed.set()

    restored, restored_metadata = workdir.restore(abstract(state))

    assert (restored["w"] == 0).all()
    assert restored_metadata == {"seen": [1]}


def test_metadata_without_a_json_form_is_refused_at_once(workdir):
    with pytest.raises(TypeError, match="not JSON serializable"):
        workdir.save(1, make_state(), {"array": np.zeros(3)})
    assert workdir.latest_step() is None


KILLED_IN_MID_SAVE = """
import json, os, signal, sys, threading
import jax.numpy as jnp
from nvae_jax.workdir import Workdir

workdir = Workdir(sys.argv[1])
workdir.save(1, {"w": jnp.ones(4)}, {})
workdir.wait()

module, name = {"json.dumps": (json, "dumps"), "os.rename": (os, "rename")}[sys.argv[2]]
original = getattr(module, name)

def kill(*args, **kwargs):
    if threading.current_thread() is threading.main_thread():
        return original(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(module, name, kill)
workdir.save(2, {"w": jnp.zeros(4)}, {})
workdir.wait()
"""


# Orbax's background threads encode what they know of the arrays early on; the rename comes last.
@pytest.mark.parametrize("moment", ["json.dumps", "os.rename"])
def test_a_half_written_checkpoint_is_never_seen(workdir, moment):
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_IN_MID_SAVE, workdir.path, moment],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    checkpoints = workdir.path / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["1", "2.orbax-checkpoint-tmp"]

    wanted = abstract({"w": jnp.ones(4)})
    restored, _ = workdir.restore(wanted)
    assert (restored["w"] == 1).all()
    assert workdir.latest_step() == 1

    workdir.save(2, {"w": jnp.full(4, 2.0)}, {})
    restored, _ = workdir.restore(wanted)
    assert (restored["w"] == 2).all()
    assert sorted(path.name for path in checkpoints.iterdir()) == ["1", "2"]


def test_a_part_restores_by_name(workdir):
    state = make_state(step=5)
    workdir.save(5, state, {})

    wanted = {"params": abstract(state.params), "vectors": abstract(state.vectors)}
    restored, _ = workdir.restore(wanted, partial=True)

    assert_trees_equal(restored, {"params": state.params, "vectors": state.vectors})


def test_what_does_not_fit_is_named(workdir):
    workdir.save(5, {"a": jnp.ones((2, 3)), "b": [jnp.ones(2)], "c": jnp.ones(2)}, {})
    placed = partial(jax.ShapeDtypeStruct, sharding=sharding(1))
    wanted = {
        "a": placed((2, 4), jnp.float32),
        "b": [placed((2,), jnp.bfloat16), placed((2,), jnp.float32)],
        "d": placed((), jnp.int32),
    }

    with pytest.raises(ValueError, match=r"checkpoint 5 in .* in 5 places") as caught:
        workdir.restore(wanted)
    assert str(caught.value).splitlines()[1:] == [
        "  a is float32[2, 3]; wanted: float32[2, 4]",
        "  b.0 is float32[2]; wanted: bfloat16[2]",
        "  b.1 is not saved",
        "  d is not saved",
        "  c is saved but not wanted",
    ]

    with pytest.raises(ValueError, match="c is wanted without a sharding"):
        workdir.restore({"c": jax.ShapeDtypeStruct((2,), jnp.float32)}, partial=True)


def test_only_the_first_differences_are_named(workdir):
    workdir.save(5, {f"a{i}": jnp.ones(2) for i in range(9)}, {})
    with pytest.raises(ValueError, match="in 10 places, the first of them:") as caught:
        workdir.restore(abstract({"b": jnp.ones(2)}))
    assert len(str(caught.value).splitlines()) == 6


def test_grid_places_images_row_by_row():
    images = np.stack([np.full((2, 3, 1), level) for level in (0.0, 0.2, 1.7)])

    grid = image_grid(images, columns=2, padding=1)

    pictured, blank = [255, 0, 0, 0, 255, 51, 51, 51, 255], [255] * 9
    assert grid.dtype == np.uint8
    np.testing.assert_array_equal(grid[..., 0], [blank, pictured, pictured, *[blank] * 4])
    np.testing.assert_array_equal(grid[..., 0], grid[..., 2])


def test_grid_is_about_square_by_default_and_keeps_colours():
    images = jnp.zeros((5, 4, 4, 3), jnp.bfloat16).at[..., 1].set(1.0)
    grid = image_grid(images, padding=0)
    assert grid.shape == (2 * 4, 3 * 4, 3)
    np.testing.assert_array_equal(grid[0, 0], [0, 255, 0])


def test_grid_shows_what_is_not_finite():
    images = np.zeros((1, 1, 3, 1))
    images[0, 0, :, 0] = [np.nan, np.inf, 0.0]
    grid = image_grid(images, padding=0)
    np.testing.assert_array_equal(grid[0], [[255, 0, 255], [255, 0, 255], [0, 0, 0]])


@pytest.mark.parametrize(
    ("images", "columns", "message"),
    [
        (np.zeros((4, 4, 3)), 1, r"images are float64\[4, 4, 3\]; allowed: float\[N > 0, H, W, 1"),
        (np.zeros((1, 4, 4, 2)), 1, r"float64\[1, 4, 4, 2\]"),
        (np.zeros((0, 4, 4, 3)), None, r"float64\[0, 4, 4, 3\]"),
        (np.zeros((1, 4, 4, 3), np.uint8), 1, r"uint8\[1, 4, 4, 3\]"),
        (np.zeros((1, 4, 4, 3)), 0, "columns is 0"),
    ],
)
def test_grid_refuses(images, columns, message):
    with pytest.raises(ValueError, match=message):
        image_grid(images, columns)


@pytest.mark.parametrize(("side", "factor"), [(4, 16), (24, 2), (64, 1), (100, 1)])
def test_picture_is_the_grid_large_enough_to_see(workdir, side, factor):
    images = np.random.default_rng(0).uniform(size=(3, side, 4, 3))
    workdir.save_picture("samples", images)
    saved = np.asarray(Image.open(workdir.path / "pictures" / "samples.png"))
    enlarged = np.kron(image_grid(images), np.ones((factor, factor, 1), np.uint8))
    np.testing.assert_array_equal(saved, enlarged)
    assert [path.name for path in (workdir.path / "pictures").iterdir()] == ["samples.png"]


def test_log_is_printed_and_appended(workdir, capsys):
    workdir.log("first")
    workdir.log("second — with a dash")
    assert capsys.readouterr().out == "first\nsecond — with a dash\n"
    lines = (workdir.path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["first", "second — with a dash"]


def test_metrics_come_back(workdir):
    assert workdir.read_metrics() == []
    workdir.write_metrics(1, {"loss": jnp.float32(0.5)})
    workdir.write_metrics(2, {"loss": float("nan"), "kl": 3})
    first, second = workdir.read_metrics()
    assert first == {"step": 1, "loss": 0.5}
    assert np.isnan(second.pop("loss"))
    assert second == {"step": 2, "kl": 3.0}


def test_a_resumed_run_has_no_double_records(workdir):
    for step in (1, 2, 3):
        workdir.write_metrics(step, {"loss": step})
    workdir.truncate_metrics(2)
    workdir.write_metrics(3, {"loss": 30})
    assert [(r["step"], r["loss"]) for r in workdir.read_metrics()] == [(1, 1), (2, 2), (3, 30)]


def test_a_torn_last_line_is_tolerated(workdir):
    workdir.write_metrics(1, {"loss": 1})
    path = workdir.path / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    assert [record["step"] for record in workdir.read_metrics()] == [1]

    workdir.write_metrics(2, {"loss": 2})
    assert [record["step"] for record in workdir.read_metrics()] == [1, 2]

    workdir.truncate_metrics(2)
    assert len(path.read_text().splitlines()) == 2
