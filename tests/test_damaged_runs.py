"""Runs with damaged or foreign files go on from what is whole, or are refused; nothing is lost.

With the stand-in update of `stand_in.py`, as in `test_trouble.py`.
"""

import dataclasses
import re
import shutil

import jax
import numpy as np
import pytest
from stand_in import ACCEPT, SAVES, applied, arrays, users

from nvae_jax.workdir import Workdir, checkpoints, integrity, orbax
from nvae_jax.workdir.checkpoints import Checkpoints


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    yield from users(tmp_path_factory.mktemp("user"))


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


def test_a_checkpoint_that_is_not_finite_is_set_aside(user, monkeypatch):
    """As versions saved it that did not look at what they saved."""
    save = Checkpoints.save

    def save_infinity(self, step, state, metadata):
        if step == 9:
            params = jax.tree.map(lambda x: x + np.float32(np.inf), state.params)
            state = dataclasses.replace(state, params=params)
        save(self, step, state, metadata)

    with monkeypatch.context() as patch:
        for module in (checkpoints, orbax):
            patch.setattr(module, "inspected", lambda tree: (integrity.inspected(tree)[0], []))
        patch.setattr(Checkpoints, "save", save_infinity)
        user.train("infinite", SAVES, own=True)
    output = user.train("infinite")
    assert "checkpoint 9" in output
    assert "is not finite in params." in output
    assert "step 6 is used" in output
    assert "done, 9 steps" in output
    assert applied(user, "infinite") == 9


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
