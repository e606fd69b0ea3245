"""Draws the training of a small model at too high learning rates, with and without the guard.

    python tests/story.py --output=docs/guard.png

Without the guard, every update is applied, and nothing goes back. Data and model are those of
`faulty.py`.
"""

import argparse
import contextlib
import itertools
import sys
import tempfile
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np
from fault_kinds import EPOCH, Fault
from faulty import Bench

from nvae_jax.compilation import keep_compiled_programs
from nvae_jax.data.loader import train_batches
from nvae_jax.measuring.results import drawing
from nvae_jax.parallel import make_mesh, shard_batch
from nvae_jax.training import step
from nvae_jax.training.program import make_program
from nvae_jax.workdir import Workdir

FACTORS = (1, 10, 100)
EPOCHS = 40
WINDOW = 20  # updates, whose mean is shown


def guarded(bench, fault, path):
    """The NELBO of windows of updates, (2, windows): the last step of each, and its mean."""
    print(bench.run(fault, 0, path), flush=True)
    records = Workdir(path).records.read_metrics()
    return np.array([(r["step"], r["train/nelbo"]) for r in records if "train/nelbo" in r]).T


def unguarded(run):
    """The same of a run of which every update is applied."""
    mesh = make_mesh(jax.devices()[:1])
    with mock.patch.object(step, "guarded", lambda old, new, applied: new):
        program = make_program(run.model, run.training, EPOCH, mesh, flip=False)
        put = lambda batch: shard_batch(mesh, batch)  # noqa: E731
        stream = train_batches(run.open_data(), run.training.batch_size, 0, put=put)
        with contextlib.closing(stream) as batches:
            state, values = program.init(next(batches), np.uint32(0)), []
            for batch in itertools.islice(batches, EPOCHS * EPOCH):
                state, metrics = program.update(state, batch)
                values.append(float(metrics["nelbo"]))
    windows = np.array(values[: len(values) // WINDOW * WINDOW]).reshape(-1, WINDOW)
    return np.stack([WINDOW * np.arange(1, len(windows) + 1), windows.mean(1)])


def main():
    """Does what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, help="the picture to write")
    options = parser.parse_args()
    keep_compiled_programs()
    with drawing(options.output, 8, 4.5) as figure:
        axes = figure.subplots()
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(Path(folder))
            for factor in FACTORS:
                changes = {
                    "training.learning_rate": 1e-2 * factor,
                    "training.epochs": EPOCHS,
                    "training.log_interval": WINDOW,
                    "training.checkpoint_interval": 100,
                    "training.eval_interval": 10**6,
                }
                path = Path(folder) / f"{factor}"
                with bench.installed():
                    with_guard = guarded(bench, Fault(f"times {factor}", changes=changes), path)
                without = unguarded(bench.described(changes))
                for curve, style, which in ((with_guard, "-", "with"), (without, "--", "without")):
                    label = f"rate times {factor}, {which} guard"
                    axes.plot(*curve, style, color=f"C{FACTORS.index(factor)}", label=label)
                    print(label, [f"{value:.4g}" for value in curve[1]], flush=True)
        axes.set(xlabel="step", ylabel="training NELBO, nats per image", yscale="log")
        axes.legend()


if __name__ == "__main__":
    main()
