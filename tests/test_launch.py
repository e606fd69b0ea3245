"""The launchers: the commands they print, and what they do with commands that only pretend."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launchers import CONFIG, ROOT, Stubs

SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
TPU = ["--name", "nvae", "--zone", "us-west4-a", "--type", "v5litepod-32"]
BUCKET = ["--", *CONFIG, "--workdir", "gs://bucket/run"]
SHELLCHECK = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


@pytest.fixture
def stubs(tmp_path):
    return Stubs(tmp_path)


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed")
def test_shellcheck():
    result = subprocess.run(
        [SHELLCHECK, "--external-sources", "--source-path", ROOT, *SCRIPTS],
        capture_output=True,
        text=True,
    )
    assert result.stdout == ""


@pytest.mark.parametrize("script", ["local.sh", "slurm.sh", "tpu.sh"])
def test_help_names_every_option(stubs, script):
    result = stubs.launch(script, "--help")
    assert result.returncode == 0
    assert result.stdout.startswith(f"usage: launch/{script}")
    options = re.findall(r"^    (--[a-z-]+)\)", (ROOT / "launch" / script).read_text(), re.M)
    for option in options:
        assert f"\n  {option} " in result.stdout


@pytest.mark.parametrize(
    ("script", "args", "message"),
    [
        ("local.sh", ["--", "--workdir", "x"], "no --config"),
        ("local.sh", ["--", *CONFIG], "no --workdir"),
        ("slurm.sh", ["--gpus=1", "--", "--workdir=x"], "--workdir is 'x', which holds no run"),
        ("local.sh", ["--", "--config=configs/cats.py", "--workdir=x"], "configs/cats.py"),
        ("local.sh", ["--processes", "two", "--", *CONFIG, "--workdir=x"], "--processes is 'two'"),
        ("local.sh", ["--processes=0", "--", *CONFIG, "--workdir=x"], "--processes is 0"),
        ("local.sh", ["--processes=2", "--", *CONFIG, "--workdir=x"], "share the same devices"),
        ("local.sh", ["--gpus=1", "--cpu-devices=1", "--", *CONFIG, "--workdir=x"], "exclude"),
        ("local.sh", ["--cats=1", "--", *CONFIG, "--workdir=x"], "--cats is no option"),
        ("local.sh", [*CONFIG, "--workdir=x"], "--config is no option"),
        ("slurm.sh", ["--", *CONFIG, "--workdir", "x"], "--gpus is missing"),
        ("slurm.sh", ["--gpus", "8", *BUCKET], "--workdir is 'gs://bucket/run'"),
        ("slurm.sh", ["--gpus"], "--gpus has no value"),
        ("tpu.sh", ["explode", *TPU], "'explode' is no command"),
        ("tpu.sh", [], "'' is no command"),
        ("tpu.sh", ["create", "--zone", "a", "--type", "v6e-8"], "--name is missing"),
        ("tpu.sh", ["create", "--name", "a", "--type", "v6e-8"], "--zone is missing"),
        ("tpu.sh", ["create", "--name", "a", "--zone", "b"], "--type is missing"),
        ("tpu.sh", ["create", "--name=a", "--zone=b", "--type=v5e-8"], "--type is 'v5e-8'"),
        ("tpu.sh", ["run", *TPU, "--", *CONFIG, "--workdir", "runs/x"], "gs://BUCKET/FOLDER"),
        ("tpu.sh", ["watch", *TPU], "no --config"),
        ("tpu.sh", ["watch", "--resume", "--name=a", "--zone=b", *BUCKET], "--type is missing"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(stubs, script, args, message):
    result = stubs.launch(script, *args)
    assert result.returncode == 2
    assert message in result.stderr
    assert stubs.calls == stubs.lines("starts") == []


def test_a_run_that_exists_needs_no_configuration(stubs):
    folder = str(stubs.run_folder)
    stubs.run_folder.mkdir()
    options = ["--dry-run", "--python", "python", "--", "--workdir", folder]
    assert "holds no run to go on with" in stubs.launch("local.sh", *options).stderr
    (stubs.run_folder / "config.json").touch()
    result = stubs.launch("local.sh", *options)
    assert result.stdout == f"python -m nvae_jax.main --workdir {folder}\n"
    # Whether a bucket holds a run is for the program to say.
    result = stubs.launch("tpu.sh", "run", *TPU, "--dry-run", "--", "--workdir=gs://bucket/run")
    assert result.returncode == 0


def test_local_dry_run(stubs):
    flags = ["--", *CONFIG, "--workdir", "runs/it's a run"]
    main = "python -m nvae_jax.main --config configs/digits.py --workdir 'runs/it'\\''s a run'"
    options = ["--dry-run", "--python", "python", "--port=20001"]

    assert stubs.launch("local.sh", *options, *flags).stdout == f"{main}\n"
    result = stubs.launch("local.sh", *options, "--processes=2", "--cpu-devices", "3", *flags)
    cpu = "env JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=3"
    distributed = "--coordinator=127.0.0.1:20001 --num_processes=2"
    assert result.stdout.splitlines() == [
        f"{cpu} {main} {distributed} --process_id=0 &",
        f"{cpu} {main} {distributed} --process_id=1 &",
        "wait",
    ]
    result = stubs.launch("local.sh", *options, "--processes=2", "--gpus=2", *flags)
    assert result.stdout.splitlines() == [
        f"env CUDA_VISIBLE_DEVICES=0,1 {main} {distributed} --process_id=0 &",
        f"env CUDA_VISIBLE_DEVICES=2,3 {main} {distributed} --process_id=1 &",
        "wait",
    ]
    # What is printed is read back as the same arguments.
    assert shlex.split(main)[-1] == flags[-1]
    assert not stubs.run_folder.exists()


@pytest.mark.parametrize(
    ("plan", "starts", "code", "message"),
    [
        (["done"], 1, 0, "the run is done"),
        (["0"], 1, 0, "stopped before its end; the same command goes on"),
        (["2", "done"], 1, 2, "refused"),
        (["1", "3", "done"], 2, 3, "the run cannot go on as it is"),
        (["1", "137", "done"], 3, 0, "the run is done"),
        (["1"] * 9, 3, 1, "gives up: no new checkpoint in 3 starts"),
        # A new checkpoint is progress, and the count starts anew.
        (
            ["1", "1", "save 1", "1", "save 1", "1", "done"],
            7,
            0,
            "(1 of 2 without a new checkpoint",
        ),
        (["save 1", "1", "1", "done"], 3, 1, "from step 1 (2 of 2 without a new checkpoint)"),
    ],
)
def test_local_starts_again_as_long_as_it_helps(stubs, plan, starts, code, message):
    stubs.write(plan=plan)
    options = ["--backoff=0", "--max-restarts=2", *stubs.program]
    result = stubs.launch("local.sh", *options, *stubs.flags)
    assert (len(stubs.lines("starts")), result.returncode) == (starts, code)
    assert message in result.stderr


def test_pauses_double(stubs):
    stubs.command(
        "sleep", 'case $1 in 0.*) exec /bin/sleep "$1" ;; *) echo "$1" >> "$STUBS/pauses"; esac'
    )
    stubs.write(plan=["1"] * 9)
    stubs.launch("local.sh", "--backoff=20", "--max-restarts=6", *stubs.program, *stubs.flags)
    assert stubs.lines("pauses") == ["20", "40", "80", "160", "300", "300"]


def test_one_death_ends_all_and_all_start_again(stubs):
    stubs.command(
        "program",
        r"""
        echo "$*" >> "$STUBS/starts"
        if [[ -e $STUBS/second ]]; then mkdir -p "$RUN"; touch "$RUN/done.json"; exit; fi
        case $* in
          *process_id=0) trap '' TERM; sleep 60 & echo "child $!"; wait; wait ;;
          *process_id=1) sleep 0.3; touch "$STUBS/second"; exit 7 ;;
        esac
        """,
    )
    options = ["--processes=2", "--cpu-devices=1", "--backoff=0", "--grace=1", *stubs.program]
    result = stubs.launch("local.sh", *options, *stubs.flags)
    assert result.returncode == 0
    assert "process 1 ended with code 7; the others have 1 s to end" in result.stderr
    assert "the run ended with code 7" in result.stderr
    identities = [line.split()[-1] for line in stubs.lines("starts")]
    assert sorted(identities) == ["--process_id=0"] * 2 + ["--process_id=1"] * 2
    # What the killed process had started is gone with it.
    (child,) = re.findall(r"\[0\] child (\d+)", result.stdout)
    assert not Path("/proc", child).exists() or "Z" in Path("/proc", child, "stat").read_text()


@pytest.mark.parametrize(
    ("act", "signals", "code"),
    [
        ("wait", [signal.SIGTERM], 0),
        ("wait", [signal.SIGINT], 0),
        ("hang", [signal.SIGTERM, signal.SIGTERM], 1),
    ],
)
def test_signals_are_passed_on(stubs, act, signals, code):
    stubs.write(plan=[act, act, "done"])
    options = ["--processes=2", "--cpu-devices=1", *stubs.program]
    output = stubs.path / "output"
    with output.open("w") as file:
        process = subprocess.Popen(
            ["bash", ROOT / "launch/local.sh", *options, *stubs.flags],
            env=stubs.env,
            stdout=file,
            stderr=subprocess.STDOUT,
            # A shell ignores SIGINT in what it runs in the background, perhaps these tests,
            # and bash cannot trap what was ignored when it began.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        wait_for(lambda: output.read_text().count("ready") == 2)
        for number, sent in enumerate(signals, 1):
            process.send_signal(sent)
            wait_for(lambda n=number: output.read_text().count("local.sh: ") >= n)
        assert process.wait(20) == code
    assert len(stubs.lines("starts")) == 2
    if act == "wait":
        assert {"[0] saved", "[1] saved"} <= set(output.read_text().splitlines())


def test_a_signal_ends_the_pause(stubs):
    stubs.write(plan=["1", "done"])
    process = subprocess.Popen(
        ["bash", ROOT / "launch/local.sh", "--backoff=200", *stubs.program, *stubs.flags],
        env=stubs.env,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if "starts again in 200 s" in line:
            break
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 1
    assert len(stubs.lines("starts")) == 1
