"""One process trains in a folder: on file systems with locks, and on those without."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from etils import epath

from nvae_jax.errors import ConfigError
from nvae_jax.workdir import lock
from nvae_jax.workdir.lock import Owner, locked

HOLD = """
import sys, time
from etils import epath
from nvae_jax.workdir.lock import locked
with locked(epath.Path(sys.argv[1])) as message:
    print(message, flush=True)
    time.sleep(float(sys.argv[2]))
"""


def hold(folder, seconds):
    """A process that holds the lock; returns when it has it."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    return process, process.stdout.readline().strip()


def test_a_second_process_is_refused_and_told_who_is_first(tmp_path):
    folder = epath.Path(tmp_path / "run")
    process, message = hold(folder, 60)
    assert message == "None"
    with pytest.raises(ConfigError) as caught, locked(folder):
        pass
    assert f"process {process.pid} on {os.uname().nodename}, started 2" in str(caught.value)
    assert str(folder) in str(caught.value)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with locked(folder) as message:
        assert f"was left by process {process.pid} on" in message
    with locked(folder) as message:
        assert message is None


@pytest.fixture
def without_locks(monkeypatch):
    def refuse(file, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(lock.fcntl, "lockf", refuse)
    monkeypatch.setattr(lock, "BEAT", 0.1)


def test_without_locks_signs_of_life_decide(tmp_path, without_locks):
    folder = epath.Path(tmp_path)
    held, done = threading.Event(), threading.Event()

    def first():
        with locked(folder):
            held.set()
            done.wait()

    thread = threading.Thread(target=first)
    thread.start()
    held.wait()
    with pytest.raises(ConfigError, match=r"where process .* is training"), locked(folder):
        pass
    done.set()
    thread.join()
    with locked(folder) as message:
        assert message is None


@pytest.mark.parametrize("clock", ["2001-01-01 00:00:00", "2099-01-01 00:00:00"])
def test_a_silent_owner_is_dead_whatever_its_clock(tmp_path, without_locks, clock):
    gone = Owner("elsewhere", 7, clock, "token", beats=3)
    (tmp_path / "lock.json").write_text(json.dumps(dataclasses.asdict(gone)))
    with locked(epath.Path(tmp_path)) as message:
        assert f"was left by process 7 on elsewhere, started {clock}" in message


def test_the_owner_beats(tmp_path, without_locks):
    with locked(epath.Path(tmp_path)):
        deadline = time.monotonic() + 20
        while json.loads((tmp_path / "lock.json").read_text())["beats"] < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert (tmp_path / "lock.json").read_bytes() == b""


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": "x"}'])
def test_a_broken_lock_is_nobodys(tmp_path, without_locks, content):
    (tmp_path / "lock.json").write_text(content)
    with locked(epath.Path(tmp_path)) as message:
        assert message is None
