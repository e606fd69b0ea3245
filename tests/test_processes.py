"""Runs as processes of their own: killed, asked to stop, several together, and started again."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from interruptions import last_arrays, named
from tiny import RUN, STEPS, run_program, tiny_run
from xla import xla_flags

from nvae_jax.parallel import make_mesh, state_sharding
from nvae_jax.processes import connect
from nvae_jax.workdir import Workdir

ROOT = Path(__file__).parent.parent
WITHOUT = Path(__file__).parent / "without_tensorflow"


class Runs:
    """Starts runs of the tiny model that share compiled programs."""

    def __init__(self, folder):
        self._folder = folder

    def start(self, name, devices=1, flags=()):
        """One process on simulated devices, in the work directory `name`."""
        # Validated at the end alone, because every start would compile the validation.
        fields = RUN | {"training.eval_interval": STEPS}
        settings = [f"--config.{field}={value}" for field, value in fields.items()]
        environment = {
            "JAX_COMPILATION_CACHE_DIR": str(self._folder / "cache"),
            "JAX_PLATFORMS": "cpu",
            # The default: sums over processes, unlike those over devices, may not overlap.
            "NPROC": "",
            "PYTHONPATH": os.pathsep.join([str(WITHOUT), os.environ.get("PYTHONPATH", "")]),
            "XLA_FLAGS": xla_flags(devices),
        }
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "nvae_jax.main", "--config=configs/digits.py"),
                *(f"--workdir={self.path(name)}", *settings, *flags),
            ],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def start_pair(self, name):
        """Two processes of two devices each."""
        together = [
            f"--coordinator={free_address()}",
            "--num_processes=2",
            "--heartbeat_timeout=10",
        ]
        return [self.start(name, 2, [*together, f"--process_id={i}"]) for i in range(2)]

    def path(self, name):
        return self._folder / name

    def wait_for_step(self, name, step, process):
        """Returns as soon as the run has written down `step`."""
        metrics = self.path(name) / "metrics.jsonl"
        deadline = time.monotonic() + 300
        while not (metrics.exists() and f'"step": {step},' in metrics.read_text()):
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def final_arrays(self, name):
        """The arrays that a run to the end has left."""
        assert Workdir(self.path(name)).checkpoints.latest_step() == STEPS
        return last_arrays(self.path(name))

    def nelbo(self, name):
        """NELBO of the windows that were recorded, in nats per image."""
        return [x["train/nelbo"] for x in self.records(name) if "train/nelbo" in x]

    def records(self, name):
        return Workdir(self.path(name)).records.read_metrics()


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def finish(*processes):
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
    return outputs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def unbroken(runs):
    """The last arrays of a run of one process and one device that was left alone."""
    finish(runs.start("unbroken"))
    return runs.final_arrays("unbroken")


@pytest.fixture(scope="module")
def unbroken_pair(runs):
    """The last arrays of a run of two processes with two devices each, left alone."""
    outputs = finish(*runs.start_pair("pair"))
    assert "done, 10 steps" in outputs[0]
    assert "step" not in outputs[1]  # only the first process speaks
    return runs.final_arrays("pair")


INTERRUPTED = r"interrupted after step (\d+); the same command resumes after step \1\b"


# See `interruptions.py` for many moments of a longer run.
def test_run_that_is_asked_to_stop_and_then_killed_ends_as_if_it_had_not_been(runs, unbroken):
    for seconds in (1, 3):  # it imports, or compiles: there is nothing to save
        process = runs.start("broken")
        time.sleep(seconds)
        process.send_signal(signal.SIGTERM)
        finish(process)

    process = runs.start("broken")
    runs.wait_for_step("broken", 2, process)
    process.send_signal(signal.SIGTERM)
    (output,) = finish(process)
    (saved,) = re.findall(INTERRUPTED, output)
    assert 2 <= int(saved) < 6
    assert Workdir(runs.path("broken")).checkpoints.latest_step() == int(saved)

    process = runs.start("broken")
    runs.wait_for_step("broken", 6, process)
    process.kill()
    output, _ = process.communicate()
    assert f"resumed after step {saved}" in output

    (output,) = finish(runs.start("broken"))
    chex.assert_trees_all_equal(runs.final_arrays("broken"), unbroken)
    # Saves are asynchronous: the one after step 6 may still have been under way.
    (step,) = re.findall(r"resumed after step (\d+)", output)
    assert int(step) >= 6 - RUN["training.checkpoint_interval"]
    steps = [record["step"] for record in runs.records("broken")]
    assert steps == sorted(steps)


AGREEING = """
import sys, time
import jax
import numpy as np
from etils import epath
from nvae_jax.errors import ConfigError
from nvae_jax.processes import connect, decided, failing_together, gathered
from nvae_jax.workdir.checkpoints import Checkpoints
from nvae_jax.workdir.integrity import DamagedError

connect(sys.argv[1], 2, int(sys.argv[2]))
number = jax.process_index()
assert gathered("long" * (number + 1)) == ["long", "longlong"]
assert decided(lambda: number) == 0

def refuse(who):
    if number == who:
        raise DamagedError(f"process {number} cannot")

def refused(work, who):
    try:
        work()
    except DamagedError as error:
        assert str(error) == f"process {who} cannot"
    else:
        raise AssertionError

def together(who):
    with failing_together():
        refuse(who)

refused(lambda: decided(lambda: refuse(0)), 0)
decided(lambda: refuse(1))
for who in (0, 1):
    refused(lambda: together(who), who)

# Only the first process sees that the newest checkpoint is damaged.
checkpoints = Checkpoints(epath.Path(sys.argv[3]))
for step in (1, 2):
    checkpoints.save(step, {"x": np.ones(3)}, {})
checkpoints.wait()
checkpoints._on_disk.check = lambda step: refuse(0 if step == 2 else None)
step, errors = checkpoints.newest(lambda step: step, DamagedError)
assert (step, list(errors)) == (1, [2])
time.sleep(number)  # the second process looks when the first has moved it
(place,) = checkpoints.set_aside(errors)
assert place.name == "2" and checkpoints.steps() == [1]
checkpoints.close()
print("agreed", flush=True)
"""


def test_processes_decide_together_and_fail_together(tmp_path):
    address = free_address()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", AGREEING, address, str(i), tmp_path / "checkpoints"],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "NPROC": "", "XLA_FLAGS": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    assert all("agreed" in output for output in finish(*processes))


def test_two_processes_train_what_one_does(runs, unbroken, unbroken_pair):
    for index, tolerance in ((0, 1e-5), (-1, 1e-3)):
        assert runs.nelbo("pair")[index] == pytest.approx(runs.nelbo("unbroken")[index], tolerance)
    moments = [name for name in unbroken if "/mu/" in name]
    assert len(moments) > 50
    ours, alone = (
        np.concatenate([arrays[name].ravel() for name in moments])
        for arrays in (unbroken_pair, unbroken)
    )
    # Rounding of sums in another order, grown over ten updates.
    assert np.linalg.norm(ours - alone) < 0.02 * np.linalg.norm(alone)


def test_two_processes_stop_together_name_their_dead_and_go_on(runs, unbroken_pair):
    first, second = runs.start_pair("parted")
    runs.wait_for_step("parted", 2, first)
    second.send_signal(signal.SIGTERM)
    output, _ = finish(first, second)
    (step,) = re.findall(INTERRUPTED, output)

    worker = r"unhealthy \(stopped sending heartbeats\):\s*1\n|task:1\b|task 1\b"
    leader = r"task:0\b|task 0\b|\bleader\b"
    for dead, name, seen in [(1, worker, 6), (0, leader, 8)]:
        pair = runs.start_pair("parted")
        runs.wait_for_step("parted", seen, pair[0])
        pair[dead].kill()
        pair[dead].communicate()
        start = time.monotonic()
        output, _ = pair[1 - dead].communicate(timeout=120)
        assert time.monotonic() - start < 60
        assert pair[1 - dead].returncode != 0
        # Beside our own explanation, which is the same for all.
        assert re.search(name, output.replace("(the leader is task 0)", "")), output
        if dead == 1:
            assert f"resumed after step {step}" in output

    checkpoints = runs.path("parted") / "checkpoints"
    steps = [int(path.name) for path in checkpoints.iterdir() if path.name.isdigit()]
    older, newest = sorted(steps)[-2:]
    arrays = (path for path in (checkpoints / str(newest) / "state").rglob("*") if path.is_file())
    largest = max(arrays, key=lambda path: path.stat().st_size)
    largest.write_bytes(bytes(largest.stat().st_size))
    outputs = finish(*runs.start_pair("parted"))
    assert f"damaged/{newest} now, and step {older:,} is used" in outputs[0]
    assert f"resumed after step {older}" in outputs[0]
    assert not re.search(f"{worker}|{leader}", "".join(outputs))
    chex.assert_trees_all_equal(runs.final_arrays("parted"), unbroken_pair)


@pytest.mark.parametrize(("devices", "shards"), [(1, 1), (8, 1), (8, 4)])
def test_checkpoint_of_two_processes_is_restored_anywhere(runs, unbroken_pair, devices, shards):
    mesh = make_mesh(jax.devices()[:devices], shards)
    program = run_program(tiny_run(), mesh)
    state, _ = Workdir(runs.path("pair")).checkpoints.restore(program.state)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    assert shardings == state_sharding(mesh, state)
    chex.assert_trees_all_equal(named(state), unbroken_pair)


def test_process_number_out_of_range_is_refused_by_name():
    with pytest.raises(
        ValueError, match=r"^--process_id is 2; allowed: 0 to --num_processes - 1 \(2\)$"
    ):
        connect("127.0.0.1:1", num_processes=2, process_id=2)
