"""Runs of a small model in which something goes wrong, in one process and by one compiled update.

The images are scikit-learn's handwritten digits, of 8×8 pixels, binarised.

Every run is a whole one in a work directory of its own: data, update, validation, checkpoints and
guard are those of `nvae_jax.training`. A fault is what the loader delivers, what the state holds
before an update, or what the configuration says.
"""

import contextlib
import dataclasses
import functools
import json
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from fault_kinds import EPOCH, FAULTS, GRADIENT, LEVELS, MODEL, TRAIN, TRAINING, Fault
from sklearn.datasets import load_digits

from configs import default
from nvae_jax.config.run import read_run
from nvae_jax.errors import ConfigError
from nvae_jax.parallel import make_mesh
from nvae_jax.training import (
    diagnosis,
    guard,
    job,
    learning,
    loop,
    program,
    recorder,
    step,
    trouble,
)
from nvae_jax.workdir import Workdir
from nvae_jax.workdir.integrity import inspected, named

LIMIT = 300  # seconds after which a run counts as hanging
STRETCH = 30  # updates in place of 1,000, because runs are short


def write_images(folder: Path) -> None:
    """Writes the images, right and dark ones, unless they are there."""
    levels = np.uint8(load_digits().images * (255 / 16))
    for name, images in (("digits.npz", levels), ("dark.npz", levels // 255)):
        if not (folder / name).exists():
            np.savez(folder / name, train=images[:TRAIN], test=images[TRAIN:])


class Bench:
    """Runs that share programs, and go wrong as `fault` says."""

    def __init__(self, folder: Path):
        write_images(folder)
        self._folder = folder
        self.fault = FAULTS[0]
        self._mesh = make_mesh()
        self._validations: dict[Any, Any] = {}
        self._updates: dict[Any, Any] = {}

    @contextlib.contextmanager
    def installed(self):
        """Has `nvae_jax.training` use what is here."""
        with contextlib.ExitStack() as stack:
            for place, name, value in (
                (guard, "STRETCH", STRETCH),
                (learning, "STRETCH", STRETCH),
                (trouble, "STRETCH", STRETCH),
                (loop, "make_mesh", lambda **_: self._mesh),
                (loop, "make_program", self._program),
                (loop, "compiled_ahead", self._compiled(loop.compiled_ahead)),
                (loop, "make_validation", self._validation(loop.make_validation)),
                (loop, "make_pictures", lambda *_: lambda variables: {}),
                (job, "train_batches", self._batches(job.train_batches)),
                (program, "batch_pixels", _pixels(program.batch_pixels)),
                (diagnosis, "batch_pixels", _pixels(program.batch_pixels)),
                (step, "make_turns", _turns(step.make_turns)),
                (trouble, "make_turns", _turns(trouble.make_turns)),
                (recorder, "TensorBoard", mock.Mock()),
            ):
                stack.enter_context(mock.patch.object(place, name, value))
            stack.enter_context(mock.patch.object(loop.Workdir, "log", _quiet(loop.Workdir.log)))
            yield

    def run(self, fault: Fault, seed: int, path: Path) -> dict[str, Any]:
        """Trains under a fault; returns a row of the table."""
        self.fault = fault
        run = self.described(fault.changes | {"training.seed": seed})
        start, error = time.monotonic(), None
        try:
            with _deadline(LIMIT):
                loop.train(run, path)
            outcome = "done"
        except FloatingPointError as failed:
            outcome, error = "report", str(failed)
        except ConfigError as refused:
            outcome, error = "refused", str(refused)
        except TimeoutError:
            outcome = "hangs"
        except Exception:
            outcome, error = "crash", traceback.format_exc()
        workdir = Workdir(path)
        metrics = workdir.records.read_metrics() if path.exists() else []
        validations = [r["validation/nelbo"] for r in metrics if "validation/nelbo" in r]
        done = path / "done.json"
        said = (path / "log.txt").read_text() if path.exists() else ""
        return {
            "fault": fault.name,
            "seed": seed,
            "outcome": outcome,
            "error": error,
            "skipped": said.count("the update is left out"),
            "rollbacks": said.count(": going back to step"),
            "drifted": "BATCH NORM HAS DRIFTED" in said,
            "nelbo": validations[-1] if validations else None,
            "not finite": _unsound(workdir, path),
            "report": (path / "report.txt").exists(),
            "called done": done.exists(),
            "done NELBO": json.loads(done.read_text())["validation/nelbo"] if done.exists() else 0,
            "seconds": time.monotonic() - start,
        }

    def leaves(self, section: str) -> list[str]:
        """The dotted names of the arrays in a section of the state."""
        run = self.described({})
        state = _shared_program(run.model, run.training, EPOCH, self._mesh, False).state
        return [f"{section}.{name}" for name in named(getattr(state, section))]

    def described(self, changes: dict[str, Any]) -> Any:
        settings = default.get_config("numpy_arrays")
        settings.data.update(path="digits.npz", binarize=True)
        settings.model.update(MODEL)
        settings.training.update(TRAINING)
        settings.update_from_flattened_dict(changes)
        settings.data.path = str(self._folder / settings.data.path)
        return read_run(settings)

    def _program(self, model, training, epoch_steps, mesh, *, flip, objective):
        del objective  # the bound, as of every fault
        # The seed is an argument of the programs.
        shared = dataclasses.replace(training, seed=0)
        return _shared_program(model, shared, epoch_steps, mesh, flip)

    def _compiled(self, original):
        def compiled_ahead(function, *arguments, **options):
            if function not in self._updates:
                self._updates[function] = original(function, *arguments, **options)

            def update(state, batch):
                fault = self.fault
                number, gone_back = int(state.step) + 1, int(state.health.rollbacks) > 0
                if fault.leaf is not None and fault.strikes(number, gone_back):
                    state = _poisoned(state, fault.leaf)
                return self._updates[function](state, batch)

            return update

        return compiled_ahead

    def _validation(self, original):
        def make_validation(run, dataset, batch_size, mesh):
            key = run.model, batch_size, run.training.drift_batches
            if key not in self._validations:
                self._validations[key] = original(run, dataset, batch_size, mesh)
            return self._validations[key]

        return make_validation

    def _batches(self, original):
        def batches(dataset, batch_size, seed, start_step=0, *, put, **options):
            # `put` knows no step, and is called ahead of it, but in order.
            fault, number, gone_back = self.fault, start_step, seed > 10**6

            def deliver(batch):
                nonlocal number
                number += 1
                if fault.batch is not None and fault.strikes(number, gone_back):
                    batch = fault.batch(batch)
                return put(batch)

            return original(dataset, batch_size, seed, start_step, put=deliver, **options)

        return batches


@functools.cache
def _shared_program(model, training, epoch_steps, mesh, flip):
    return program.make_program(model, training, epoch_steps, mesh, flip=flip)


def _pixels(original):
    """Pixels of a batch, as its field `epoch` marks them."""

    def pixels(image, batch, seed, flip):
        kind = batch["epoch"][0]
        x = original(image, batch | {"epoch": jnp.maximum(batch["epoch"], 0)}, seed, flip)
        x = jnp.where(kind == LEVELS, 255 * x, x)
        return x.at[0, 0, 0, 0].set(jnp.where(kind == GRADIENT, -1, x[0, 0, 0, 0]))

    return pixels


def _turns(original):
    """The losses, of which the gradient alone is NaN where the pixels are marked."""

    def marked_loss(loss):
        def marked(params, batch_stats, x, key, beta):
            is_marked = x[0, 0, 0, 0] < 0
            value, others = loss(params, batch_stats, jnp.maximum(x, 0), key, beta)
            total = sum(leaf.sum() for leaf in jax.tree.leaves(params))
            root = jnp.sqrt(jnp.where(is_marked, 0 * total, 1.0))
            return value + root - jnp.where(is_marked, 0.0, 1.0), others

        return marked

    def make_turns(*arguments):
        turns = original(*arguments)
        return tuple(dataclasses.replace(turn, loss=marked_loss(turn.loss)) for turn in turns)

    return make_turns


def _poisoned(state, name):
    """A state in which a number of the array with this dotted name is infinite."""
    paths = dict(zip(named(state), jax.tree_util.tree_leaves_with_path(state), strict=True))
    path, leaf = paths[name]
    array = np.array(leaf)
    array.flat[0] = np.inf
    bad = jax.device_put(array, leaf.sharding)
    return jax.tree_util.tree_map_with_path(lambda p, x: bad if p == path else x, state)


def _unsound(workdir, path):
    """The arrays in a run's checkpoints that are not finite, and checkpoints beside others."""
    from interruptions import arrays_of

    found = []
    for number in workdir.checkpoints.steps():
        _, bad = inspected(arrays_of(path / "checkpoints" / str(number)))
        found += [f"{number}: {name}" for name in bad]
    workdir.checkpoints.close()
    return found


def _quiet(original):
    def log(self, message):
        with contextlib.redirect_stdout(None):
            original(self, message)

    return log


@contextlib.contextmanager
def _deadline(seconds):
    def ring(number, frame):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
