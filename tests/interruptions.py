"""Asks a run to stop at random moments, again and again, and says what that did to it.

Command: python tests/interruptions.py --hits 20 --workdir DIR --unbroken DIR -- --config FILE

`--unbroken` is the work directory of the same run, left alone: the last arrays of both must be
equal bit for bit. What stands behind `--` are the flags of `python -m nvae_jax.main`.
"""

import argparse
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np


def last_arrays(workdir):
    """The arrays of the last checkpoint by name."""
    checkpoints = Path(workdir) / "checkpoints"
    last = max(int(path.name) for path in checkpoints.iterdir() if path.name.isdigit())
    return arrays_of(checkpoints / str(last))


def arrays_of(checkpoint):
    """The arrays of a checkpoint by name, read without any code of the run."""
    import orbax.checkpoint as ocp

    path = Path(checkpoint).absolute() / "state"
    with ocp.PyTreeCheckpointer() as checkpointer:
        saved = checkpointer.metadata(path).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
        tree = checkpointer.restore(path, restore_args=as_numpy)
    return named(tree)


def named(tree):
    """The leaves of a tree as arrays by name, however the tree holds them."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in leaves
    }


def interrupt(program, log, seconds):
    """Starts `program`, sends SIGTERM after so many seconds, and returns what it did.

    Returns: its exit code, the seconds that it took to end, and the steps after which its log says
      that it resumed and that it was interrupted; None: it does not say so.
    """
    before = len(log.read_text()) if log.exists() else 0
    process = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(seconds)
    process.send_signal(signal.SIGTERM)
    start = time.monotonic()
    code = process.wait()
    said = log.read_text()[before:] if log.exists() else ""
    resumed, interrupted = (
        re.search(rf"{word} after step ([\d,]+)", said) for word in ("resumed", "interrupted")
    )
    steps = [match and int(match[1].replace(",", "")) for match in (resumed, interrupted)]
    return code, time.monotonic() - start, *steps


def main():
    """Does what the command line says; fails if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hits", type=int, default=20, help="how often")
    parser.add_argument("--within", type=float, default=60, help="seconds of a start, at most")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--workdir", required=True, help="of the run: a new folder")
    parser.add_argument("--unbroken", required=True, help="work directory of a run left alone")
    parser.add_argument("flags", nargs="+", help="of nvae_jax.main, behind --")
    options = parser.parse_args()
    program = [sys.executable, "-m", "nvae_jax.main", f"--workdir={options.workdir}"]
    program += options.flags
    moments = random.Random(options.seed)
    saved = None
    for hit in range(1, options.hits + 1):
        seconds = moments.uniform(0, options.within)
        code, took, resumed, interrupted = interrupt(
            program, Path(options.workdir) / "log.txt", seconds
        )
        print(
            f"{hit}: SIGTERM after {seconds:.1f} s, exit code {code} {took:.1f} s later; resumed "
            f"after step {resumed}, interrupted after step {interrupted}",
            flush=True,
        )
        # A start that was stopped before it read the checkpoint says neither.
        if code or resumed not in (saved, None) or (saved and interrupted and not resumed):
            raise SystemExit(f"it should have ended with 0, and resumed after step {saved}")
        saved = interrupted or saved
    subprocess.run(program, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ours, unbroken = last_arrays(options.workdir), last_arrays(options.unbroken)
    different = [name for name in unbroken if not np.array_equal(ours[name], unbroken[name])]
    if different or ours.keys() != unbroken.keys():
        raise SystemExit(f"different from the unbroken run: {', '.join(different)}")
    print(f"{len(ours)} arrays are those of the unbroken run, bit for bit")


if __name__ == "__main__":
    main()
