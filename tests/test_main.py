"""What `nvae_jax.main` does from its command line to its exit code.

Training has the update of `stand_in.py`.
"""

import os
import shutil
import signal

import pytest
import stored
from commands import ROOT, Commands
from PIL import Image
from stand_in import OWN
from tiny import make_run

from nvae_jax.workdir import Workdir

MAIN = "nvae_jax.main"
CHEAP = "import pytest, stand_in; stand_in.stand_in(pytest.MonkeyPatch()); "
OWN_RUN = [f"--config={ROOT}/configs/image_folder.py:cpu32"]
OWN_RUN += [f"--config.{name}={value}" for name, value in OWN.items()]


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    there = tmp_path_factory.mktemp("there")
    (there / "photos").mkdir()
    for i in range(28):
        Image.fromarray(stored.photos(1, 10, 12, seed=i)[0]).save(there / "photos" / f"{i:03d}.png")
    return there


@pytest.fixture(scope="module")
def commands(there):
    commands = Commands(there, XDG_CACHE_HOME=str(there / "cache"))
    yield commands
    commands.close()


def run(commands, *arguments, before=CHEAP):
    outcome = commands.run(MAIN, *arguments, before=before)
    assert outcome.code == 0, outcome.stderr
    return outcome.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_a_signal_saves_the_step_and_the_folder_alone_resumes(commands, there, number):
    name = f"stopped_{number.name}"
    asked = CHEAP + f"stand_in.signal_at(4, {int(number)})"
    output = run(commands, *OWN_RUN, f"--workdir={name}", before=asked)
    assert f"{number.name}: the run is saved after this step" in output
    assert "interrupted after step 4" in output
    assert Workdir(there / name).checkpoints.latest_step() == 4
    output = run(commands, f"--workdir={name}")
    assert "resumed after step 4" in output
    assert "done, 9 steps" in output


@pytest.mark.parametrize("lost", ["terminal", "disk"])
def test_a_run_outlives_what_it_prints_to(commands, there, lost):
    """The reader of its output ends, as a terminal that is closed; or the output's disk is full."""
    onto = {
        "terminal": "r, out = os.pipe(); os.close(r); ",
        "disk": "out = os.open('/dev/full', os.O_WRONLY); ",
    }[lost]
    gone = f"import os; {onto} os.dup2(out, 1); os.dup2(out, 2); os.close(out); "
    asked = f"stand_in.signal_at(4, {int(signal.SIGHUP)})"
    assert run(commands, *OWN_RUN, f"--workdir=lost_{lost}", before=gone + CHEAP + asked) == ""
    assert Workdir(there / f"lost_{lost}").checkpoints.latest_step() == 4
    assert "interrupted after step 4" in (there / f"lost_{lost}" / "log.txt").read_text()


def test_names_and_folders_need_not_be_text(commands, there):
    shutil.copytree(there / "photos", there / "2024")
    (there / "2024" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"torn")
    where = ["--config.data.path=2024", "--config.data.unreadable=skip"]
    old = "import sys; sys.stdout.reconfigure(encoding='ascii', errors='strict'); "
    output = run(commands, *OWN_RUN, *where, "--workdir=Übung", before=old + CHEAP)
    assert r"1 of 29 files are unreadable: caf\udce9.png (" in output
    assert r"\xdcbung/pictures" in output
    log = (there / "Übung" / "log.txt").read_text(encoding="utf-8")
    assert r"caf\udce9.png" in log
    assert "Übung/pictures" in log
    assert "done, 9 steps" in run(commands, "--workdir=Übung", "--config.data.path=2024")


RECORDING = """
import os, signal, time
import nvae_jax.training.recorder as r
record = r.Recorder.record
def asked(self, *arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.3)
    record(self, *arguments)
r.Recorder.record = asked
"""


def test_a_signal_after_the_only_update_that_is_left_does_not_lose_it(commands, there):
    asked = CHEAP + f"stand_in.signal_at(8, {int(signal.SIGTERM)})"
    run(commands, *OWN_RUN, "--workdir=last", before=asked)
    assert Workdir(there / "last").checkpoints.latest_step() == 8
    output = run(commands, "--workdir=last", before=CHEAP + RECORDING)
    assert "SIGTERM: the run is saved after this step" in output
    assert "done, 9 steps" in output


def test_a_signal_before_the_first_update_of_a_start_ends_it(commands, there):
    asked = CHEAP + "stand_in.loop.start_or_resume = lambda job: stand_in.asked_to_stop()"
    output = run(commands, *OWN_RUN, "--workdir=unstarted", before=asked)
    assert "SIGTERM before the first update: nothing new to save" in output


def test_a_second_start_is_refused_by_the_name_of_the_first(commands, there):
    run(commands, *OWN_RUN, "--workdir=busy")
    with Workdir(there / "busy").locked():
        for arguments in (["--workdir=busy"], [*OWN_RUN, "--workdir=busy"]):
            outcome = commands.run(MAIN, *arguments, before=CHEAP)
            assert outcome.code == 2
            assert f"where process {os.getpid()} on " in outcome.stderr
    assert "done, 9 steps" in run(commands, "--workdir=busy")


def test_a_run_goes_on_by_its_folder_with_fields_on_top(commands, there):
    run(commands, *OWN_RUN, "--workdir=alone")
    fields = ["--config.training.epochs=4", "--config.data.path=photos"]
    assert commands.run(MAIN, "--workdir=alone", *fields, before=CHEAP).code == 2
    assert "done, 12 steps" in run(commands, "--workdir=alone", *fields, "--accept_changes")


@pytest.mark.parametrize("size", ["8,12", "(8, 12)", "[8,12]", "8"])
def test_sizes_may_be_rectangular(commands, there, size):
    name = f"size_{size.replace(' ', '')}".replace("[", "").replace("]", "")
    run(commands, *OWN_RUN, f"--workdir={name}", f"--config.data.size={size}")
    settings = Workdir(there / name).load_config()
    assert settings["model"]["image_shape"] == ([8, 8, 3] if size == "8" else [8, 12, 3])
    # Nothing of it is lost where the folder alone is given.
    assert "done, 9 steps" in run(commands, f"--workdir={name}")


def test_the_size_of_a_run_without_a_checkpoint_may_be_changed(commands, there):
    none = CHEAP + "import nvae_jax.training.loop as l; l.start_or_resume = lambda job: exit(2)"
    assert commands.run(MAIN, *OWN_RUN, "--workdir=early", before=none).code == 2
    run(commands, "--workdir=early", "--config.data.size=16")
    assert Workdir(there / "early").load_config()["model"]["image_shape"] == [16, 16, 3]


def test_without_a_home_nothing_is_written_beside_the_run(commands, there):
    homeless = "import os, pwd; os.environ.pop('HOME'); os.environ.pop('XDG_CACHE_HOME'); "
    homeless += "pwd.getpwuid = {}.__getitem__; "
    before = {path.name for path in there.iterdir()}
    assert "done, 9 steps" in run(commands, *OWN_RUN, "--workdir=homeless", before=homeless + CHEAP)
    assert {path.name for path in there.iterdir()} - before == {"homeless"}


def snapshot(folder):
    return {p: (p.stat().st_mtime_ns, p.is_dir() or p.read_bytes()) for p in folder.rglob("*")}


def test_a_run_that_cannot_be_written_to_is_sampled_elsewhere(commands, there):
    archive = make_run(there / "archive")
    before = snapshot(archive)
    for path in (archive, *archive.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)  # which root ignores
    try:
        arguments = ["--mode=sample", "--workdir=archive", "--num_images=2", "--batch_size=1"]
        run(commands, *arguments, "--results=elsewhere")
        assert (there / "elsewhere" / "sample" / "samples.png").exists()
        assert snapshot(archive) == before
    finally:
        for path in (archive, *archive.rglob("*")):
            path.chmod(0o755)
        shutil.rmtree(archive)
