"""Stop, change something, go on: each story by the arguments that a user would type.

The update and the pictures are those of `stand_in.py`; `test_loop.py` and `test_processes.py` have
the real ones.
"""

import json
import shutil

import numpy as np
import pytest
from stand_in import ACCEPT, CLIP, arrays, users

from nvae_jax.training import loop
from nvae_jax.workdir import Workdir


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    yield from users(tmp_path_factory.mktemp("user"))


@pytest.fixture(scope="module")
def done(user):
    """A run that has come to its end: 25 training images of 28, three steps in an epoch."""
    assert "done, 9 steps" in user.train("done", own=True)
    return user.folder / "done"


def copy(done, name):
    return shutil.copytree(done, done.parent / name).name


def test_a_run_goes_on_by_its_folder_alone(user, done):
    run = copy(done, "alone")
    assert "done, 9 steps" in user.train(run)  # nothing is left to do
    output = user.refused(run, "--config.training.epochs=4")
    assert "training.epochs is 4, saved: 3" in output
    assert ACCEPT in output
    output = user.train(run, "--config.training.epochs=4", ACCEPT)
    assert "from step 9 on: config.training.epochs is 4, saved: 3" in output
    assert "done, 12 steps" in output
    assert user.steps(run) == [*range(1, 13)]
    assert user.changes(run) == [(9, ["config.training.epochs is 4, saved: 3"])]
    assert json.loads((user.folder / run / "done.json").read_text())["step"] == 12
    # From now on that is the run.
    assert "done, 12 steps" in user.train(run)
    assert "allowed: at least the 12 steps" in user.refused(
        run, "--config.training.epochs=2", ACCEPT
    )


def test_free_fields_need_no_consent_and_fixed_ones_get_none(user, done):
    run = copy(done, "fields")
    user.train(run, "--config.training.log_interval=5", "--config.loading.num_workers=0")
    output = user.refused(run, "--config.model.num_groups=3", ACCEPT)
    assert "model.num_groups is 3, saved: 2, which gives parameters their shape" in output


def test_what_a_diverged_run_advises_works(user):
    user.train("diverged", "--config.training.epochs=1", own=True)
    rate = "--config.training.learning_rate=1e12"
    with pytest.raises(FloatingPointError) as caught:
        user.train("diverged", rate, "--config.training.epochs=3", ACCEPT)
    assert CLIP in str(caught.value)
    assert ACCEPT in str(caught.value)
    assert Workdir("diverged").checkpoints.latest_step() == 3
    lower = "--config.training.learning_rate=0.01"
    assert "saved: None" in user.refused("diverged", CLIP, lower)
    output = user.train("diverged", CLIP, lower, ACCEPT)
    assert "from step 3 on: config.training.learning_rate is 0.01" in output
    assert "config.training.gradient_clip is 200" in output
    assert "done, 9 steps" in output
    assert user.steps("diverged") == [*range(1, 10)]
    # A run that diverges before its first checkpoint accepts any configuration.
    with pytest.raises(FloatingPointError):
        user.train("at_once", rate, own=True)
    assert "done, 9 steps" in user.train("at_once", CLIP, own=True)


def test_a_folder_without_a_checkpoint_accepts_any_configuration(user, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "start_or_resume", stop)
        with pytest.raises(KeyboardInterrupt):
            user.train("early", own=True)
    assert (user.folder / "early" / "config.json").exists()
    output = user.train("early", "--config.model.num_latents=3", "--config.training.epochs=1")
    assert "done, 3 steps" in output


def test_images_that_come_and_go_are_listed_and_accepted(user, done):
    run = copy(done, "images")
    user.add_photos(28, 36)
    try:
        output = user.refused(run, "--config.training.epochs=4")
        assert "epochs is 4" in output
        output = user.refused(run)
        assert "8 images added: 028.png, 029.png, 030.png, 031.png, 032.png and 3 more" in output
        assert ACCEPT in output
        output = user.train(run, "--config.training.epochs=4", ACCEPT)
        # As if it had always been so: 33 training images are four steps in an epoch.
        assert "done, 16 steps" in output
        assert "8 images added" in output
        assert user.steps(run) == [*range(1, 17)]
        assert len(user.changes(run)[0][1]) == 2
        (user.folder / "photos" / "001.png").unlink()
        assert "1 image removed: 001.png" in user.refused(run)
    finally:
        for i in range(28, 36):
            (user.folder / "photos" / f"{i:03d}.png").unlink()
        user.add_photos(1, 2)


def test_what_a_broken_file_advises_works(user, done):
    run = copy(done, "broken")
    path = user.folder / "photos" / "000.png"
    path.write_bytes(b"torn")
    try:
        output = user.refused(run)
        skip = "--config.data.unreadable=skip"
        assert "000.png (" in output
        assert skip in output
        assert ACCEPT in output
        output = user.train(run, skip, "--config.training.epochs=4", ACCEPT)
        assert "1 image removed: 000.png" in output
        assert "1 of 28 files are unreadable: 000.png" in output
        assert "1 of 28 files" in (user.folder / run / "log.txt").read_text()
        assert "done, 12 steps" in output
    finally:
        user.add_photos(0, 1)


def test_a_run_moves_to_another_folder_and_host(user, done):
    run = copy(done, "moved")
    # As it is left by a process that was killed on a machine that is no more.
    (user.folder / run / "lock.json").write_text(
        json.dumps({"host": "gone", "process": 1, "since": "now", "token": "x", "beats": 4})
    )
    shutil.copytree(user.folder / "photos", user.folder / "elsewhere")
    output = user.train(run, "--config.data.path=elsewhere", "--config.training.epochs=4", ACCEPT)
    assert "was left by process 1 on gone" in output
    assert "done, 12 steps" in output
    assert user.changes(run) == [(9, ["config.training.epochs is 4, saved: 3"])]


def test_averages_and_clipping_come_and_go(user, done):
    run = copy(done, "averages")
    user.train(run, "--config.training.ema_decay=0.5", CLIP, "--config.training.epochs=4", ACCEPT)
    average = arrays(run, 12, "ema_params")
    # From the parameters at the change, since nothing here moves it.
    np.testing.assert_equal(average, arrays(str(done), 9, "params"))
    assert {x for value in arrays(run, 12, "params").values() for x in np.unique(value)} == {12}
    plain = "--config.training.ema_decay=None"
    no_clip = "--config.training.gradient_clip=None"
    user.train(run, plain, no_clip, "--config.training.epochs=5", ACCEPT)
    assert user.steps(run) == [*range(1, 16)]
    assert arrays(run, 15, "ema_params") == {}
    assert [step for step, _ in user.changes(run)] == [9, 12]


def test_another_batch_size_moves_the_end(user, done):
    run = copy(done, "batches")
    batch = "--config.training.batch_size=16"
    assert "batch_size is 16, saved: 8" in user.refused(run, batch)
    assert "at least the 9 steps that are trained (these are 3)" in user.refused(run, batch, ACCEPT)
    assert "done, 12 steps" in user.train(run, batch, "--config.training.epochs=12", ACCEPT)
