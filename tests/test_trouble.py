"""Runs whose updates fail go on, go back or end with a report; none is lost or wrongly done.

With the stand-in update of `stand_in.py`, of which every applied one adds 1 to all parameters. Runs
have nine steps and a checkpoint after every third.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import subprocess

import numpy as np
import orbax.checkpoint as ocp
import pytest
from stand_in import ACCEPT, FAULTS, arrays, users

from nvae_jax.errors import ConfigError
from nvae_jax.training import learning, loop
from nvae_jax.workdir import Workdir
from nvae_jax.workdir.checkpoints import Checkpoints

SAVES = "--config.training.checkpoint_interval=3"
NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    yield from users(tmp_path_factory.mktemp("user"))


@pytest.fixture(autouse=True)
def faults():
    yield FAULTS
    for kind in FAULTS.values():
        kind.clear()


class Killed(BaseException):
    """In place of SIGKILL: nothing that comes after it is done."""


class KilledAt:
    """Ends a run after a step."""

    def __init__(self, step):
        self.step = step

    def updated(self):
        pass

    def requested(self, step):
        if step == self.step:
            raise Killed


def applied(user, run):
    """How many updates the last checkpoint has; all checkpoints are finite."""
    checkpoints = Workdir(run).checkpoints
    for step in checkpoints.steps():
        for name in ("params", "opt_state", "batch_stats"):
            assert all(np.isfinite(x).all() for x in arrays(run, step, name).values())
    (value,) = {x for array in arrays(run, 9, "params").values() for x in np.unique(array)}
    return value


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("steps", [[1], [4], [3], [9], [3, 4, 5]])
def test_single_updates_are_left_out(user, faults, request, steps, value):
    faults["once"] |= dict.fromkeys(steps, value)
    run = re.sub(r"\W+", "_", request.node.name)
    output = user.train(run, SAVES, own=True)
    assert "done, 9 steps" in output
    assert output.count("the update is left out") == len(steps)
    for step in steps:
        assert f"step {step}: the update is left out" in output
    assert "going back" not in output
    assert applied(user, run) == 9 - len(steps)
    assert [r["step"] for r in Workdir(run).records.read_metrics() if "train/nelbo" in r] == [
        step for step in range(1, 10) if step not in steps
    ]


def test_many_in_a_row_make_the_run_go_back(user, faults):
    faults["once"] |= dict.fromkeys(range(4, 9), NAN)
    output = user.train("back", SAVES, own=True)
    assert (
        "5 updates in a row are left out at step 8: going back to step 3, with other draws and "
        "images in another order, the learning rate times 0.5"
    ) in output
    assert "done, 9 steps" in output
    assert applied(user, "back") == 9
    assert user.steps("back") == [*range(1, 10)]
    health = {k.split("'")[1]: int(v) for k, v in arrays("back", 9, "health").items()}
    assert (health["rollbacks"], health["recent"], health["since"]) == (1, 1, 3)
    assert arrays("back", 9, "seed")[""] == 1_000_003


def test_two_at_the_end_make_the_run_go_back(user, faults):
    faults["once"] |= {8: NAN, 9: NAN}
    output = user.train("end", SAVES, own=True)
    assert "2 updates in a row are left out at step 9: going back to step 6" in output
    assert applied(user, "end") == 9


def test_before_the_first_checkpoint_it_starts_anew(user, faults):
    faults["once"] |= dict.fromkeys(range(2, 7), NAN)
    output = user.train("anew", "--config.training.checkpoint_interval=100", own=True)
    assert "going back to step 0" in output
    assert applied(user, "anew") == 9


@pytest.mark.parametrize("steps", [range(4, 99), range(5, 99)])
def test_a_run_that_cannot_be_helped_ends_with_a_report(user, faults, request, steps):
    faults["always"] |= dict.fromkeys(steps, NAN)
    run = re.sub(r"\W+", "_", request.node.name)
    with pytest.raises(FloatingPointError) as caught:
        user.train(run, SAVES, "--config.training.epochs=4", own=True)
    assert "going back 3 times did not help" in str(caught.value)
    assert ACCEPT in str(caught.value)
    assert (user.folder / run / "report.txt").read_text() == "the report\n"
    assert not (user.folder / run / "done.json").exists()
    assert Workdir(run).checkpoints.steps() == [3]
    faults["always"].clear()
    assert "done, 12 steps" in user.train(run)


def test_a_jump_that_stays_makes_the_run_go_back_and_is_not_saved(user, faults):
    faults["once"] |= dict.fromkeys(range(5, 99), 50)
    output = user.train("jump", SAVES, own=True)
    assert "the NELBO has jumped from 10.0 to 50.0 nats at step 7: going back to step 3" in output
    assert "done, 9 steps" in output
    assert {r["train/nelbo"] for r in Workdir("jump").records.read_metrics() if "train/nelbo" in r}
    assert max(r.get("train/nelbo", 0) for r in Workdir("jump").records.read_metrics()) == 10


def test_a_jump_at_the_end_makes_the_run_go_back(user, faults):
    faults["once"] |= {8: 50, 9: 50}
    output = user.train("last", SAVES, own=True)
    assert "the NELBO has jumped in the last windows at step 9: going back to step 6" in output
    assert "done, 9 steps" in output


def test_a_run_that_learns_nothing_is_never_done(user, faults, monkeypatch):
    """Images have 192 levels of 8 bits, at most 1,065 nats and a twentieth of that."""
    monkeypatch.setattr(learning, "STRETCH", 2)
    monkeypatch.setattr(learning, "WINDOWS", 4)
    faults["always"] |= dict.fromkeys(range(99), 2000) | {3: 1000, 7: 1000}
    assert "done, 9 steps" in user.train("once", SAVES, own=True)
    falls = {step: 3000 - 100 * step for step in range(99)}
    for run, values, last in (("stuck", dict.fromkeys(range(99), 2000), 4), ("falls", falls, 9)):
        faults["always"] |= values
        message = f"nothing is learned.* at step {last}.*a new run"
        for _ in range(2):
            with pytest.raises(FloatingPointError, match=message):
                user.train(run, SAVES, own=not (user.folder / run).exists())
        assert "going back" not in (user.folder / run / "log.txt").read_text()
        assert (user.folder / run / "report.txt").read_text() == "the report\n"
        assert not (user.folder / run / "done.json").exists()
        assert Workdir(run).checkpoints.steps() == [3, 6, 9][: last // 3][-2:]


def test_another_nelbo_after_an_accepted_change_is_no_jump(user, faults):
    user.train("changed", SAVES, own=True)
    faults["always"] |= dict.fromkeys(range(10, 99), 50)
    more = ("--config.training.epochs=6", "--config.training.weight_decay=0.1", ACCEPT)
    with pytest.raises(Killed):
        user.train("changed", *more, preemption=KilledAt(14))
    output = user.train("changed")
    assert "resumed after step 12" in output
    assert "done, 18 steps" in output
    assert "going back" not in (user.folder / "changed" / "log.txt").read_text()


def test_a_change_that_does_not_fit_is_not_written_down(user, monkeypatch):
    user.train("big", own=True)
    before = (user.folder / "big" / "config.json").read_bytes()

    def too_large(*_, **__):
        def update(*_):
            raise ConfigError("an update needs more memory")

        return update

    with monkeypatch.context() as patch:
        patch.setattr(loop, "compiled_ahead", too_large)
        more = ("--config.training.epochs=12", "--config.training.batch_size=16", ACCEPT)
        assert "more memory" in user.refused("big", *more)
    assert (user.folder / "big" / "config.json").read_bytes() == before
    assert not (user.folder / "big" / "changes.jsonl").exists()
    assert "done, 9 steps" in user.train("big")


def test_a_jump_that_does_not_stay_changes_nothing(user, faults):
    faults["once"] |= {5: 50, 6: 50}
    output = user.train("blip", SAVES, own=True)
    assert "going back" not in output
    assert applied(user, "blip") == 9


@pytest.mark.parametrize("step", [3, 9])
def test_a_validation_that_is_not_finite_makes_the_run_go_back(user, faults, step):
    faults["validation"][step] = NAN
    run = f"validation{step}"
    output = user.train(run, SAVES, "--config.training.eval_interval=3", own=True)
    assert f"the validation NELBO is nan at step {step}: going back to step {step - 3}" in output
    assert "done, 9 steps" in output
    assert json.loads((user.folder / run / "done.json").read_text())["validation/nelbo"] == 1


def test_a_run_that_went_back_is_resumed_as_if_it_had_not_been_interrupted(user, faults):
    faults["once"] |= {2: NAN} | dict.fromkeys(range(5, 10), NAN)
    user.train("unbroken", SAVES, own=True)
    wanted = {name: arrays("unbroken", 9, name) for name in ("params", "health", "seed")}
    for stop in (1, 2, 3, 6, 8):
        run = f"killed{stop}"
        with pytest.raises(Killed):
            user.train(run, SAVES, own=True, preemption=KilledAt(stop))
        assert "done, 9 steps" in user.train(run)
        for name, value in wanted.items():
            np.testing.assert_equal(arrays(run, 9, name), value)
        assert user.steps(run) == user.steps("unbroken")


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


def damage(run, step, how):
    """Damages the largest file of a checkpoint's arrays."""
    folder = run / "checkpoints" / str(step)
    path = max((folder / "state" / "d").iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "zeroed":
        path.write_bytes(bytes(len(content)))
    elif how == "deleted":
        path.unlink()
    elif how == "empty folder":
        (run / "checkpoints" / "99").mkdir()
    elif how == "foreign":
        shutil.rmtree(folder)
        shutil.copytree(run / "checkpoints" / "6", folder)
    else:
        shutil.rmtree(folder / how.removeprefix("no "))


@pytest.mark.parametrize(
    "how",
    [
        "flipped",
        "truncated",
        "zeroed",
        "deleted",
        "empty folder",
        "foreign",
        "no state",
        "no checksums",
    ],
)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(user, request, how):
    run = re.sub(r"\W+", "_", request.node.name)
    user.train(run, SAVES, own=True)
    wanted = arrays(run, 9, "params")
    damage(user.folder / run, 9, how)
    output = user.train(run)
    assert "done, 9 steps" in output
    number = 99 if how == "empty folder" else 9
    assert f"damaged/{number}" in output
    assert (user.folder / run / "damaged" / str(number)).is_dir()
    if how not in ("empty folder", "no state"):
        assert "step 6 is used" in output
    np.testing.assert_equal(arrays(run, 9, "params"), wanted)


def test_a_run_of_which_only_parts_of_checkpoints_are_left_is_refused(user):
    user.train("parts", SAVES, own=True)
    before = (user.folder / "parts" / "metrics.jsonl").read_text()
    for step in (6, 9):
        damage(user.folder / "parts", step, "no state")
    assert "no whole checkpoint, but parts of 6, 9" in user.refused("parts")
    assert (user.folder / "parts" / "metrics.jsonl").read_text() == before


def test_a_run_with_damaged_checkpoints_alone_is_refused(user):
    user.train("lost", SAVES, own=True)
    for step in (6, 9):
        damage(user.folder / "lost", step, "flipped")
    assert "9" in user.refused("lost")
    assert Workdir("lost").checkpoints.steps() == [6, 9]


@pytest.mark.parametrize("content", [None, b"", b"torn\n[1]\n5\n\xff\xfe{}\n"])
def test_a_finished_run_without_its_metrics_is_validated_again(user, request, content):
    run = re.sub(r"\W+", "_", request.node.name)
    user.train(run, own=True)
    path = user.folder / run / "metrics.jsonl"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    output = user.train(run)
    assert "step 9/9  validation NELBO 1.00" in output
    assert "done, 9 steps" in output
    assert "compiling" not in output


def test_a_checkpoint_of_another_model_is_refused_and_stays_where_it_is(user):
    user.train("other", SAVES, own=True)
    path = user.folder / "other" / "config.json"
    content = path.read_text()
    path.write_text(content.replace('"decoder_channels": 4', '"decoder_channels": 8'))
    message = user.refused("other", "--config.training.epochs=4", ACCEPT)
    assert "checkpoint 9 in" in message
    assert "another model" in message
    assert re.search(r"decoder\.\S+ is float32\[.*\]; wanted: float32\[", message)
    assert Workdir("other").checkpoints.steps() == [6, 9]
    assert not (user.folder / "other" / "damaged").exists()
    damage(user.folder / "other", 9, "flipped")
    assert "checkpoint 6 in" in user.refused("other", "--config.training.epochs=4", ACCEPT)
    path.write_text(content)
    assert "done, 9 steps" in user.train("other")


def test_a_folder_whose_name_is_a_pattern_is_refused(user):
    """Orbax would drop the arrays that it saves there, and say nothing."""
    assert "allowed: a path without [ and ]" in user.refused("run[1]", own=True)
