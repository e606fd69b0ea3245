"""Runs keep the checkpoints that they should, and go on while a disk is full.

With the stand-in update of `stand_in.py`, as in `test_trouble.py`.
"""

import contextlib
import errno
import os
import subprocess

import numpy as np
import orbax.checkpoint as ocp
import pytest
import stand_in
from stand_in import ACCEPT, SAVES, applied, arrays, users

from nvae_jax.errors import ConfigError
from nvae_jax.workdir import Workdir
from nvae_jax.workdir.checkpoints import Checkpoints


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    yield from users(tmp_path_factory.mktemp("user"))


@pytest.fixture(autouse=True)
def faults():
    yield from stand_in.faults()


@pytest.mark.parametrize("method", ["save", "wait_until_finished"])
@pytest.mark.parametrize("room", [6, 7])
def test_a_full_disk_does_not_end_a_run(user, monkeypatch, method, room):
    """Orbax raises at once, or later in a thread; there is room again after step 6, or not yet."""
    original, run = getattr(ocp.CheckpointManager, method), f"full_{method}_{room}"

    def failing(self, *arguments, **options):
        done = user.steps(run)
        if done and 3 <= done[-1] < room:
            raise ValueError("RESOURCE_EXHAUSTED: No space left on device [file='x']\nmore")
        return original(self, *arguments, **options)

    monkeypatch.setattr(ocp.CheckpointManager, method, failing)
    output = user.train(run, SAVES, own=True)
    assert "a checkpoint is not saved" in output
    assert "No space left on device" in output
    assert "IS NOT SAVED" in output
    assert "done, 9 steps" in output
    assert Workdir(run).checkpoints.steps() == [room, 9]
    assert applied(user, run) == 9


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of 2 MiB."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", os.fspath(tmp_path)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount")
    yield tmp_path
    subprocess.run(["umount", "--lazy", tmp_path], check=True)


class Filler:
    """Fills a disk after one step, and makes room after another."""

    def __init__(self, folder, full, room):
        self.path, self.full, self.room = folder / "filler", full, room

    def updated(self):
        pass

    def requested(self, step):
        if step == self.full:
            with contextlib.suppress(OSError), self.path.open("wb", 0) as file:
                while True:
                    file.write(bytes(4096))
        elif step == self.room:
            self.path.unlink()
        return False


@pytest.mark.parametrize("full", [2, 4])
def test_a_run_on_a_disk_that_is_full_for_a_while_loses_nothing(user, small_disk, full):
    run, unbroken, longer = (
        os.fspath(small_disk / "run"),
        f"room{full}",
        "--config.training.epochs=8",
    )
    output = user.train(run, SAVES, longer, own=True, preemption=Filler(small_disk, full, room=18))
    assert "done, 24 steps" in output
    assert "No space left on device" in output
    assert "IS NOT SAVED" in output
    assert user.steps(run) == [*range(1, 25)]
    assert Workdir(run).checkpoints.steps()[-1] == 24
    user.train(unbroken, SAVES, longer, own=True)
    for name in ("params", "opt_state", "batch_stats", "health", "seed"):
        np.testing.assert_equal(arrays(run, 24, name), arrays(unbroken, 24, name))


def test_a_run_whose_last_save_fails_is_not_done(user, monkeypatch):
    def failing(self, step, state, metadata):
        raise ConfigError(f"it cannot be written: {errno.ENOSPC}")

    monkeypatch.setattr(Checkpoints, "save", failing)
    with pytest.raises(ConfigError, match="step 9 is not saved"):
        user.train("unsaved", own=True)
    assert not (user.folder / "unsaved" / "done.json").exists()
    monkeypatch.undo()
    user.folder.joinpath("unsaved", "checkpoints").mkdir(exist_ok=True)


def test_the_best_and_every_so_many_are_kept(user, faults):
    faults["validation"] |= {2: 0.5, 3: 0.25, 7: 0.75}
    fields = {"keep_checkpoints": 1, "keep_every": 4, "eval_interval": 1, "checkpoint_interval": 1}
    user.train("kept", *(f"--config.training.{k}={v}" for k, v in fields.items()), own=True)
    assert Workdir("kept").checkpoints.steps() == [3, 4, 8, 9]


def test_the_best_is_one_since_the_last_change(user, faults):
    faults["validation"] |= {2: 0.25, 5: 0.5}
    fields = {"keep_checkpoints": 1, "eval_interval": 1, "checkpoint_interval": 1, "epochs": 1}
    user.train("compared", *(f"--config.training.{k}={v}" for k, v in fields.items()), own=True)
    assert Workdir("compared").checkpoints.steps() == [2, 3]
    changed = "--config.training.learning_rate=0.02", "--config.training.epochs=2", ACCEPT
    assert "done, 6 steps" in user.train("compared", *changed)
    assert Workdir("compared").checkpoints.steps() == [5, 6]
