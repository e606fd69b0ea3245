"""Kills a run at random moments until it comes to its end, and says what that did to it.

    python tests/kills.py --hits 50 --output=FOLDER
    python tests/kills.py --hits 10 --processes 2 --output=FOLDER

The run is that of `faulty.py`, with ten updates in a row that are not finite, so that it also goes
back. It is killed (SIGKILL) at any time, while a checkpoint is written, while it is read back, and
while the run goes back. At the end, the arrays of the last checkpoint must be those of a run that
was left alone, bit for bit.
"""

import argparse
import contextlib
import functools
import os
import random
import re
import shutil
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import faulty
import numpy as np
from fault_kinds import FAULTS
from interruptions import last_arrays

from nvae_jax.compilation import keep_compiled_programs
from nvae_jax.processes import connect

FAULT = next(fault for fault in FAULTS if fault.name == "gradient NaN at ten in a row")
MOMENTS = ("any time", "a checkpoint is written", "it is read back", "the run goes back")


def fork(work):
    """Does work in a process that has imported what it needs already; returns its number.

    It ends with the code that `work` returns. This process must not have threads, and JAX starts
    some: everything that needs it is such work.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def start(path, processes):
    """Starts the run; returns the numbers of its processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"

    def train(number):
        if processes > 1:  # all the others of a run tell of the one that was killed
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
        keep_compiled_programs()
        if processes > 1:
            connect(address, processes, number, 10)
        bench = faulty.Bench(path.parent)
        with bench.installed():
            row = bench.run(FAULT, 0, path)
        print(row["error"] or "", end="", file=sys.stderr)
        return int(row["outcome"] != "done")

    return [fork(functools.partial(train, number)) for number in range(processes)]


def wait_for(moment, path, log, before, child, moments):
    """Waits for a moment of a run; returns at once where the run ends before."""
    checkpoints = path / "checkpoints"

    def said():
        return log.read_text()[before:] if log.exists() else ""

    def lives():
        return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def unfinished():
        return checkpoints.exists() and any("tmp" in p.name for p in checkpoints.iterdir())

    while lives() and not re.search("first step done", said()):
        time.sleep(0.01)
        if moment == "any time" and moments.random() < 0.0005:
            return
    if moment == "any time":
        time.sleep(moments.uniform(0, 6))
        return
    checks = {
        "a checkpoint is written": unfinished,
        "it is read back": unfinished,
        "the run goes back": lambda: "are left out at step" in said() or "going back" in said(),
    }
    happens = checks[moment]
    for left in reversed(range(1 + moments.randrange(4) * (happens is unfinished))):
        while lives() and not happens():
            time.sleep(0.001)
        while left and lives() and happens():  # one of the next checkpoints
            time.sleep(0.001)
    if moment == "it is read back":
        while lives() and unfinished():
            time.sleep(0.0005)
    time.sleep(moments.uniform(0, 0.08))


def end(children):
    """Waits for the others of a run of which one was killed; they end by themselves."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def main():
    """Does what the command line says; fails if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hits", type=int, default=50, help="how often")
    parser.add_argument("--processes", type=int, default=1, help="of the run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--output", type=Path, required=True, help="a folder for the runs")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    faulty.write_images(options.output)
    unbroken, path = options.output / "unbroken", options.output / "killed"
    for folder in (unbroken, path):
        shutil.rmtree(folder, ignore_errors=True)
    begin = time.monotonic()
    if any(end(start(unbroken, options.processes))):
        raise SystemExit("the run that was left alone failed")
    print(f"left alone: {time.monotonic() - begin:.0f} s", flush=True)
    moments, hits, ends = random.Random(options.seed), 0, 0
    log = path / "log.txt"
    while hits < options.hits:
        moment = MOMENTS[hits % len(MOMENTS)]
        before = len(log.read_text()) if log.exists() else 0
        children = start(path, options.processes)
        victim = moments.randrange(options.processes)
        wait_for(moment, path, log, before, children[victim], moments)
        with contextlib.suppress(ProcessLookupError):
            os.kill(children[victim], signal.SIGKILL)
        codes = end(children)
        said = log.read_text()[before:] if log.exists() else ""
        resumed = re.findall(r"resumed after step (\d+)", said)
        steps = re.findall(r"step (\d+)/", said)
        if codes[victim] == -signal.SIGKILL:
            hits += 1
            print(
                f"{hits}: {moment}; resumed after {resumed}, last line of step {steps[-1:]}, "
                f"{'went back; ' if 'going back' in said else ''}codes {codes}",
                flush=True,
            )
        if "Traceback" in said or codes[victim] not in (0, -signal.SIGKILL):
            raise SystemExit(f"it ended with {codes}:\n{said}")
        if codes[victim] == 0:  # it has come to its end: the next hits are for another run
            ends += 1
            same(path, unbroken)
            shutil.rmtree(path)
    if any(end(start(path, options.processes))):
        raise SystemExit(f"the last start failed:\n{log.read_text()}")
    same(path, unbroken)
    print(f"bit-equal to the run that was left alone in {ends + 1} runs")


def same(path, unbroken):
    """Compares the last arrays of two runs; ends with those that differ."""

    def compare():
        ours, wanted = last_arrays(path), last_arrays(unbroken)
        different = [name for name in wanted if not np.array_equal(ours.get(name), wanted[name])]
        print(f"{len(wanted)} arrays, different: {', '.join(different) or 'none'}", flush=True)
        return int(bool(different) or ours.keys() != wanted.keys())

    if any(end([fork(compare)])):
        raise SystemExit("different from the run that was left alone")


if __name__ == "__main__":
    main()
