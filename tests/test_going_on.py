"""Stop, change something, go on: each story by the arguments that a user would type.

The update and the pictures are those of `stand_in.py`; `test_loop.py` and `test_processes.py` have
the real ones.
"""

import json
import shutil

import numpy as np
import pytest
from stand_in import ACCEPT, CLIP, arrays, users

from nvae_jax.config.run import read_run
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


class Stop:
    """Asks a run to stop after a step."""

    def __init__(self, step):
        self.step = step

    def updated(self):
        pass

    def requested(self, step):
        return step == self.step


def test_a_run_moves_to_another_folder_and_host(user):
    user.train("here", own=True, preemption=Stop(4))
    run = shutil.move(user.folder / "here", user.folder / "moved").name
    # As it is left by a process that was killed on a machine that is no more.
    (user.folder / run / "lock.json").write_text(
        json.dumps({"host": "gone", "process": 1, "since": "now", "token": "x", "beats": 4})
    )
    shutil.copytree(user.folder / "photos", user.folder / "elsewhere")
    output = user.train(run, "--config.data.path=elsewhere")
    assert "was left by process 1 on gone" in output
    assert "resumed after step 4" in output
    assert "done, 9 steps" in output
    assert not (user.folder / run / "changes.jsonl").exists()


def test_averages_and_clipping_come_and_go(user, done):
    run = copy(done, "averages")
    averaged = "--config.training.ema_decay=0.5", "--config.training.eval_statistics=averaged"
    user.train(run, *averaged, CLIP, "--config.training.epochs=4", ACCEPT)
    for name in ("params", "batch_stats"):
        average = arrays(run, 12, f"ema_{name}")
        # From what it was at the change, since nothing here moves it.
        np.testing.assert_equal(average, arrays(str(done), 9, name))
        assert average
    assert {x for value in arrays(run, 12, "params").values() for x in np.unique(value)} == {12}
    plain = "--config.training.ema_decay=None"
    no_clip = "--config.training.gradient_clip=None"
    running = "--config.training.eval_statistics=running"
    user.train(run, plain, running, no_clip, "--config.training.epochs=5", ACCEPT)
    assert user.steps(run) == [*range(1, 16)]
    assert arrays(run, 15, "ema_params") == arrays(run, 15, "ema_batch_stats") == {}
    assert [step for step, _ in user.changes(run)] == [9, 12]


def test_another_batch_size_moves_the_end(user, done):
    run = copy(done, "batches")
    batch = "--config.training.batch_size=16"
    assert "batch_size is 16, saved: 8" in user.refused(run, batch)
    assert "at least the 9 steps that are trained (these are 3)" in user.refused(run, batch, ACCEPT)
    assert "done, 12 steps" in user.train(run, batch, "--config.training.epochs=12", ACCEPT)


@pytest.mark.parametrize(("number", "size"), [(2, 1), (3, 2), (6, 4)])
def test_a_few_images_are_trained_in_small_batches(user, number, size):
    few = user.folder / f"few_{number}"
    few.mkdir()
    for path in sorted((user.folder / "photos").iterdir())[:number]:
        shutil.copy(path, few)
    run, where = f"of_{number}", f"--config.data.path=few_{number}"
    output = user.train(run, where, own=True)
    assert f"training.batch_size is {size} and not 8, because there are {number - 1} tr" in output
    assert "done, 3 steps" in output  # one in an epoch
    # The configuration keeps the batch that was asked for, which more images fill.
    assert Workdir(run).load_config()["training"]["batch_size"] == 8
    assert "done, 3 steps" in user.train(run)
    for path in (user.folder / "photos").iterdir():
        shutil.copy(path, few)
    output = user.train(run, ACCEPT)
    assert "done, 9 steps" in output
    assert "because" not in output


def test_a_batch_that_few_images_fill_is_shared_by_the_devices(user, monkeypatch):
    parts = "--config.training.accumulation_steps=4"
    few = user.folder / "few"
    few.mkdir()
    for path in sorted((user.folder / "photos").iterdir())[:3]:
        shutil.copy(path, few)
    message = user.refused("shared", parts, "--config.data.path=few", own=True)
    assert "batch_size, halved until 2 training images fill it, is 2; allowed: multip" in message
    assert not (user.folder / "shared").exists()


def test_copies_of_test_images_are_none_to_train_on(user, done):
    run = copy(done, "copies")
    dataset = read_run(Workdir(run).load_config()).open_data()
    tested = list(dataset.files["test"])
    twins = [user.folder / "photos" / f"000 {i} of {name}" for i in range(3) for name in tested]
    try:
        for path in twins:
            shutil.copy(user.folder / "photos" / path.name.rpartition(" ")[2], path)
        output = user.train(run, "--config.training.epochs=4", ACCEPT)
        assert f"{len(twins)} images added" in output
        assert "moved" not in output
        manifest = Workdir(run).load_images()
        assert {*manifest["test"]} == {*tested, *(path.name for path in twins)}
    finally:
        for path in twins:
            path.unlink()


def test_another_test_fraction_divides_all_images_anew(user, done):
    run = copy(done, "fraction")
    more = "--config.data.test_fraction=0.4", "--config.training.epochs=9"
    assert "test_fraction is 0.4, saved: 0.1" in user.refused(run, *more)
    assert "moved to the other split" in user.train(run, *more, ACCEPT)


def test_of_two_first_starts_the_second_goes_on(user, monkeypatch):
    make_program, inner = loop.make_program, []

    def start_another(*args, **kwargs):
        if not inner:
            inner.append(None)
            inner[:] = [user.train("twice", own=True)]
        return make_program(*args, **kwargs)

    monkeypatch.setattr(loop, "make_program", start_another)
    output = user.train("twice", own=True)
    assert "a new model" in inner[0]
    assert "done, 9 steps" in output
    assert output.count("a new model") == 1  # the other's, whose lines are there, too
    assert user.steps("twice") == [*range(1, 10)]


@pytest.mark.parametrize(
    "name",
    ["checkpoints", "lock.json", "log.txt", "config.json", "images.json.gz", "metrics.jsonl"],
)
def test_what_is_in_the_way_is_refused_by_name(user, done, name):
    run = copy(done, f"blocked_{name}")
    path = user.folder / run / name
    if path.is_dir():
        shutil.rmtree(path)
        path.write_text("a file")
    else:
        path.unlink()
        path.mkdir()
    assert name in user.refused(run, "--config.training.epochs=4", ACCEPT)
