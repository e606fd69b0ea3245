"""The launcher for Cloud TPU, with a gcloud that only pretends."""

import shlex
import subprocess

import pytest
from launchers import CONFIG, NOTE, ROOT, Stubs

TPU = ["--name=nvae", "--zone=us-west4-a", "--type=v5litepod-32", "--spot"]
FLAGS = ["--", *CONFIG, "--workdir", "gs://bucket/run", "--config.data.name=it's"]

GCLOUD = "gcloud compute tpus"
AT = "--zone=us-west4-a"
SSH = f"{GCLOUD} tpu-vm ssh nvae {AT} --worker=all --command="
DESCRIBE = f"{GCLOUD} queued-resources describe nvae --format=value(state.state) {AT}"
CREATE = (
    f"{GCLOUD} queued-resources create nvae --node-id=nvae --accelerator-type=v5litepod-32 "
    f"--runtime-version=v2-alpha-tpuv5-lite --spot {AT}"
)
DELETE = f"{GCLOUD} queued-resources delete nvae --force --quiet {AT}"
SCP = f"{GCLOUD} tpu-vm scp TMP/nvae_jax-nvae.tar.gz nvae:nvae_jax.tar.gz {AT} --worker=all"
ARCHIVE = "git archive --format=tar.gz --output=TMP/nvae_jax-nvae.tar.gz HEAD"
READY = f"{SSH}true"

# A unit's state as the machine reports it.
GOING = r"step 1\nExecMainStatus=0\nActiveState=active"
STOPPED = r"saved\nExecMainStatus=0\nActiveState=inactive"
FAILED = r"gives up\nExecMainStatus=1\nActiveState=failed"
REFUSED = r"model.depth is unknown\nExecMainStatus=2\nActiveState=failed"
DIVERGED = r"report.txt says what\nExecMainStatus=3\nActiveState=failed"


@pytest.fixture
def stubs(tmp_path):
    stubs = Stubs(tmp_path)
    stubs.write(states=["ACTIVE"], units=[GOING], finished=["no"], steps=[""])
    return stubs


def commands(text, stubs):
    """Commands as lists of words; commands that go to machines shortened to their first line."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " ", True, ""
    found, words = [], []
    for word in lexer:
        if set(word) == {"\n"}:
            found.append(words)
            words = []
        else:
            words.append(word.split("\n")[0])
    return [" ".join(words).replace(str(stubs.path.parent), "TMP") for words in found]


def remote_command(stubs, command):
    """The script that `command` runs on the machines."""
    printed = stubs.launch("tpu.sh", command, "--dry-run", *TPU, *FLAGS).stdout
    (script,) = [w for w in shlex.split(printed) if w.startswith("--command=") and w != READY]
    return script.removeprefix("--command=")


STOP = f"{SSH}! systemctl --quiet is-active nvae || sudo systemctl stop nvae"
START = f"{SSH}echo always | sudo tee /sys/kernel/mm/transparent_hugepage/enabled >/dev/null"
INSTALL = [ARCHIVE, SCP, f"{SSH}set -e"]
RESUME = [DESCRIBE, DELETE, CREATE, DESCRIBE, READY, *INSTALL, START]
LOOK = [
    "gcloud storage ls gs://bucket/run/done.json",
    DESCRIBE,
    f"{GCLOUD} tpu-vm ssh nvae {AT} --worker=0 --command=sudo journalctl --unit=nvae "
    "--cursor-file=/run/nvae.cursor --output=cat --no-pager",
]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("create", [CREATE, DESCRIBE, READY]),
        ("install", INSTALL),
        ("run", [START]),
        ("watch", LOOK),
        ("watch --resume", [*LOOK, "# Preempted:", *RESUME]),
        ("resume", RESUME),
        ("stop", [STOP]),
        ("delete", [DESCRIBE, STOP, DELETE]),
    ],
)
def test_dry_run(stubs, command, expected):
    result = stubs.launch("tpu.sh", *command.split(), "--dry-run", *TPU, *FLAGS)
    assert result.returncode == 0
    assert commands(result.stdout, stubs) == expected
    assert stubs.calls == []


@pytest.mark.parametrize(
    ("kind", "version"),
    [
        ("v3-8", "tpu-ubuntu2204-base"),
        ("v4-32", "tpu-ubuntu2204-base"),
        ("v5p-8", "v2-alpha-tpuv5"),
        ("v6e-256", "v2-alpha-tpuv6e"),
    ],
)
def test_runtime_version_goes_with_the_type(stubs, kind, version):
    options = ["--name=a", "--zone=b", f"--type={kind}", "--project=c", "--create=--reserved"]
    printed = stubs.launch("tpu.sh", "create", "--dry-run", *options).stdout.splitlines()[0]
    assert printed == (
        f"{GCLOUD} queued-resources create a --node-id=a --accelerator-type={kind} "
        f"--runtime-version={version} --reserved --zone=b --project=c"
    )


def test_the_machines_get_the_command_as_it_was_given(stubs):
    stubs.command("sudo", '[[ $1 != systemd-run ]] || printf "%s\\n" "$@" > "$STUBS/unit"')
    home = str(stubs.path)
    script = remote_command(stubs, "run")
    subprocess.run(["bash", "-c", script], env=stubs.env | {"HOME": home}, check=True)
    unit = stubs.lines("unit")
    assert {"--unit=nvae", "--property=KillMode=mixed"} <= set(unit)
    launcher = unit.index(f"{home}/nvae_jax/launch/local.sh")
    assert unit[launcher + 1 :] == [
        *("--python=../nvae_venv/bin/python", "--max-restarts=5", "--backoff=10"),
        *(*FLAGS, "--distributed"),
    ]


def test_install_unpacks_what_is_committed_and_leaves_a_run_alone(stubs):
    stubs.command("python3", NOTE)
    script, home = remote_command(stubs, "install"), stubs.path / "home"
    home.mkdir()
    archive = f"--output={home}/nvae_jax.tar.gz"
    subprocess.run(["git", "archive", "--format=tar.gz", archive, "HEAD"], cwd=ROOT, check=True)

    def install(*, active):
        stubs.command("systemctl", f"exit {0 if active else 3}")
        return subprocess.run(["bash", "-c", script], env=stubs.env, cwd=home, capture_output=True)

    result = install(active=True)
    assert result.returncode == 1
    assert b"a run is going" in result.stderr
    assert stubs.calls == []
    assert install(active=False).returncode == 0
    assert (home / "nvae_jax" / "nvae_jax" / "main.py").exists()
    assert stubs.calls[-1][-2:] == ["--editable", "./nvae_jax[tpu]"]


def watch(stubs, *options):
    result = stubs.launch(
        "tpu.sh", "watch", "--poll=0", "--backoff=0", "--max-restarts=2", *options, *TPU, *FLAGS
    )
    # What was done, beside looking.
    verbs = [
        "start" if "systemd-run" in call[-1] else call[4] if call[4] != "ssh" else "ssh"
        for call in stubs.calls
        if call[1] == "compute" and "describe" not in call and "--worker=0" not in call
    ]
    return result, verbs


@pytest.mark.parametrize(
    ("files", "code", "message"),
    [
        ({"finished": ["no", "no", "yes"]}, 0, "the run is done: gs://bucket/run"),
        ({"units": [GOING, STOPPED]}, 1, "the run is stopped (nvae is ACTIVE)"),
        ({"units": [GOING, FAILED]}, 1, "the run failed"),
        ({"units": [REFUSED]}, 2, "the run was refused"),
        ({"units": [DIVERGED]}, 3, "the run cannot go on as it is"),
        ({"states": ["ACTIVE", "SUSPENDED"]}, 1, "the run is lost (nvae is SUSPENDED)"),
        ({"states": ["ERROR: NOT_FOUND"]}, 1, "the run is lost (nvae is ABSENT)"),
        ({"states": ["ERROR: no network", "ACTIVE"], "finished": ["no", "yes"]}, 0, "no network"),
        ({"units": [""]}, 1, "no answer from nvae (10 of 10)"),
    ],
)
def test_watch_ends_with_the_run(stubs, files, code, message):
    stubs.write(**files)
    result, verbs = watch(stubs)
    assert result.returncode == code
    assert message in result.stderr
    assert verbs == []


def test_watch_shows_the_log_and_deletes_the_tpu_in_the_end(stubs):
    stubs.write(units=[GOING, r"step 2\nExecMainStatus=0\nActiveState=active", STOPPED])
    stubs.write(finished=["no", "no", "yes"])
    result, verbs = watch(stubs, "--delete")
    assert result.stdout.splitlines()[:3] == ["step 1", "step 2", "saved"]
    assert result.returncode == 0
    assert verbs == ["ssh", "delete"]


def test_watch_resumes_a_preempted_run(stubs):
    stubs.write(
        states=["ACTIVE", "SUSPENDING", "SUSPENDED", "SUSPENDED", "PROVISIONING", "ACTIVE"],
        finished=["no"] * 4 + ["yes"],
    )
    result, verbs = watch(stubs, "--resume")
    assert result.returncode == 0
    assert verbs == ["delete", "create", "ssh", "scp", "ssh", "start"]


def test_watch_starts_a_stopped_run_on_the_same_machines(stubs):
    stubs.write(units=[STOPPED, GOING], finished=["no", "no", "yes"])
    result, verbs = watch(stubs, "--resume")
    assert result.returncode == 0
    assert verbs == ["ssh", "start"]


@pytest.mark.parametrize(
    ("steps", "resumed"), [([""], 2), (["100"], 2), (["100", "100", "200", "200"], 3)]
)
def test_watch_resumes_only_as_long_as_it_helps(stubs, steps, resumed):
    stubs.write(units=[STOPPED], steps=steps)
    result, verbs = watch(stubs, "--resume")
    assert result.returncode == 1
    assert "gives up: no new checkpoint in 3 starts" in result.stderr
    assert verbs.count("start") == resumed


def test_create_fails_when_the_request_does(stubs):
    stubs.write(states=["WAITING_FOR_RESOURCES", "FAILED"])
    result = stubs.launch("tpu.sh", "create", "--poll=0", *TPU)
    assert result.returncode == 1
    assert "nvae is FAILED" in result.stderr


def test_delete_knows_when_there_is_nothing(stubs):
    stubs.write(states=["ERROR: NOT_FOUND: no such resource"])
    result = stubs.launch("tpu.sh", "delete", *TPU)
    assert result.returncode == 0
    assert "there is no nvae" in result.stderr
