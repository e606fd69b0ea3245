"""Damages the newest checkpoint of a run in every way, and says whether that was always found.

    python tests/damage.py --workdir=RUN --flips=200

RUN has two checkpoints at least; its copy is damaged. Each file of the newest is deleted, cut in
half, zeroed and changed in one bit; then single bits of files drawn by their size are changed. What
training restores and what evaluation opens must each be the older checkpoint, or, where a file was
hit that is never read, the newest one bit for bit.
"""

import argparse
import collections
import contextlib
import io
import logging
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np
from interruptions import arrays_of, named

from nvae_jax.config.run import read_run
from nvae_jax.data.loader import steps_per_epoch
from nvae_jax.evaluation.trained import open_run
from nvae_jax.parallel import make_mesh
from nvae_jax.training.continuing import restore
from nvae_jax.training.program import make_program
from nvae_jax.workdir import Workdir, orbax
from nvae_jax.workdir.integrity import DamagedError, NotFiniteError

WAYS = ("deleted", "truncated", "zeroed", "flipped")


def spoil(path, content, how, rng):
    """Damages a file with this content."""
    if how == "deleted":
        path.unlink()
        return
    spoilt = bytearray(content)
    if how == "truncated":
        del spoilt[len(spoilt) // 2 :]
    elif how == "zeroed":
        spoilt = bytearray(len(spoilt))
    elif spoilt:
        spoilt[rng.integers(len(spoilt))] ^= 1 << rng.integers(8)
    path.write_bytes(spoilt)


def trained(path, program, saved):
    """The step that training goes on from; its arrays are those that were saved."""
    checkpoints = Workdir(path).checkpoints
    with contextlib.closing(checkpoints):
        state, _ = checkpoints.newest(
            lambda step: restore(checkpoints, step, program.state), DamagedError, NotFiniteError
        )
    step = int(state.step)
    for name, array in named(state).items():
        np.testing.assert_array_equal(array, saved[step][name], err_msg=f"{step}: {name}")
    return step


def evaluated(path, mesh, saved, params):
    """The same for evaluation."""
    model = open_run(path, mesh)
    found = {params: model.variables["params"], "batch_stats": model.variables["batch_stats"]}
    for name, array in named(found).items():
        np.testing.assert_array_equal(array, saved[model.step][name], err_msg=name)
    return model.step


def main():
    """Does what the command line says; fails where damage changes anything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="of a run")
    parser.add_argument("--flips", type=int, default=200, help="single bits that are changed")
    options = parser.parse_args()
    logging.getLogger().setLevel(logging.CRITICAL)
    orbax._OTHER_READS = 0.0
    rng, mesh = np.random.default_rng(0), make_mesh(jax.devices()[:1])
    run = read_run(Workdir(options.workdir).load_config())
    steps = steps_per_epoch(run.open_data(), run.training.batch_size)
    program = make_program(run.model, run.training, steps, mesh, flip=False)
    params = "params" if run.training.ema_decay is None else "ema_params"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        shutil.copytree(options.workdir, path)
        older, newest = Workdir(path).checkpoints.steps()[-2:]
        saved = {step: arrays_of(path / "checkpoints" / str(step)) for step in (older, newest)}
        files = [p for p in (path / "checkpoints" / str(newest)).rglob("*") if p.is_file()]
        sizes = np.array([file.stat().st_size for file in files], float)
        cases = [(file, how) for file in files for how in WAYS]
        drawn = rng.choice(len(files), size=options.flips, p=sizes / sizes.sum())
        cases += [(files[i], "flipped at random") for i in drawn]
        counts = collections.Counter()
        for file, how in cases:
            content = file.read_bytes()
            spoil(file, content, how, rng)
            with contextlib.redirect_stdout(io.StringIO()):
                used = (trained(path, program, saved), evaluated(path, mesh, saved, params))
            if len(set(used)) > 1 or not {older, newest}.issuperset(used):
                raise SystemExit(f"{file} {how}: training and evaluation use steps {used}")
            counts[how, "the older one is used" if used[0] == older else "changes nothing"] += 1
            if used[0] == newest:
                print(f"changes nothing: {file.relative_to(path)} {how}", flush=True)
            file.write_bytes(content)
    for (how, what), number in sorted(counts.items()):
        print(f"{number:4} {how}: {what}")


if __name__ == "__main__":
    main()
