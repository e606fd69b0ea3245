"""A run is asked to stop by signals: it saves, and at the second one it ends at once."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

ASKED = """
import sys, time
from nvae_jax.processes import Preemption
preemption = Preemption()
preemption.requested(0)
print("ready", flush=True)
while not preemption.requested(1):
    time.sleep(0.01)
print("saving", flush=True)
time.sleep(float(sys.argv[1]))
print("saved", flush=True)
"""


def attend():
    """Signals do what they do at a terminal, also where a shell has had them ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def ask(seconds, before=attend):
    """A process that saves for so many seconds once it is asked to stop."""
    process = subprocess.Popen(
        [sys.executable, "-c", ASKED, str(seconds)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=before,
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_run_is_asked_to_stop_once_and_twice(first):
    process = ask(0.5)
    process.send_signal(first)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)  # as a launcher and a terminal both pass it on
    output, _ = process.communicate()
    assert f"{first.name}: the run is saved" in output
    assert output.endswith("saved\n")
    assert process.returncode == 0
    process = ask(60)
    process.send_signal(first)
    assert (
        f"{first.name}: the run is saved" in process.stdout.readline() + process.stdout.readline()
    )
    time.sleep(2.2)
    process.send_signal(first)
    output, _ = process.communicate(timeout=20)
    assert f"{first.name} again" in output
    assert process.returncode == 128 + first


def test_signals_that_are_to_be_ignored_are(tmp_path):
    process = ask(0, lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))  # as nohup does
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate()
    assert "SIGHUP" not in output
    assert output.endswith("saved\n")
