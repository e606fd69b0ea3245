"""A user with a folder of photographs, whose runs have an update that compiles at once.

The update, the validation and the pictures are stand-ins, on a few parameters and in a real work
directory; everything around them is what `nvae_jax.training` does. `FAULTS` says what goes wrong.
"""

import dataclasses
import functools
import importlib
import json
import os
import signal
import time

import jax
import numpy as np
import pytest
import stored
from PIL import Image
from tiny import ONE_DEVICE

from configs import image_folder
from nvae_jax.config.overrides import parse_overrides, with_overrides
from nvae_jax.config.run import read_run
from nvae_jax.errors import ConfigError
from nvae_jax.training import loop, trouble
from nvae_jax.training.guard import after_update, easing
from nvae_jax.training.optimizer import make_optimizer
from nvae_jax.training.program import make_program
from nvae_jax.workdir import Workdir

# By step: the NELBO of that update, in nats; only of a run that has never gone back, unless it is
# in `FAULTS["always"]`.
FAULTS = {"once": {}, "always": {}, "validation": {}}

# The smallest model of a folder of images, twelve training steps of four images.
OWN = {
    "data.path": "photos",
    "data.size": 8,
    "model.architecture": "res_bnswish",
    "model.num_scales": 1,
    "model.num_groups": 2,
    "model.num_blocks": 0,
    "model.num_latents": 2,
    "model.encoder_channels": 4,
    "model.decoder_channels": 4,
    "model.encoder_cells": 1,
    "model.decoder_cells": 1,
    "model.preprocess_cells": 1,
    "model.postprocess_cells": 1,
    "model.num_mixtures": 1,
    "model.remat": "none",
    "training.batch_size": 8,
    "training.epochs": 3,
    "training.warmup_epochs": 0,
    "training.accumulation_steps": 1,
    "training.log_interval": 1,
    "training.checkpoint_interval": 100,
    "training.eval_interval": 100,
    "training.picture_interval": 100,
}
CLIP = "--config.training.gradient_clip=200"
ACCEPT = "--accept_changes"
SAVES = "--config.training.checkpoint_interval=3"  # of nine updates


class User:
    """Starts and continues runs in a folder with photographs."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "photos").mkdir()
        self.add_photos(0, 28)

    def add_photos(self, first, last):
        for i in range(first, last):
            image = Image.fromarray(stored.photos(1, 10, 12, seed=i)[0])
            image.save(self.folder / "photos" / f"{i:03d}.png")

    def train(self, workdir, *arguments, own=False, preemption=None):
        """Trains, with the saved configuration or the `own` one; returns what is logged."""
        fields = [argument for argument in arguments if argument != ACCEPT]
        settings = image_folder.get_config().to_dict() if own else None
        settings = settings or Workdir(workdir).load_config()
        settings = with_overrides(settings, OWN if own else {})
        run = read_run(with_overrides(settings, parse_overrides(fields)))
        log = self.folder / workdir / "log.txt"
        before = log.stat().st_size if log.exists() else 0
        loop.train(run, workdir, preemption, accept_changes=ACCEPT in arguments)
        return log.read_bytes()[before:].decode()

    def refused(self, workdir, *arguments, **options):
        with pytest.raises(ConfigError) as caught:
            self.train(workdir, *arguments, **options)
        return str(caught.value)

    def steps(self, workdir):
        return [r["step"] for r in Workdir(workdir).records.read_metrics() if "train/nelbo" in r]

    def changes(self, workdir):
        lines = (self.folder / workdir / "changes.jsonl").read_text().splitlines()
        return [(r["step"], r["changes"]) for r in map(json.loads, lines)]


@functools.cache
def small_program(model, training, steps_per_epoch, mesh, *, flip):
    """The program of a run without most of its parameters, so that it is saved in no time."""
    program = make_program(model, training, steps_per_epoch, mesh, flip=flip)
    state = program.state
    decoder = state.params["decoder"]
    few = [name for name in ("prior_features", "first") if name in decoder] or [*decoder][:1]
    params = {"decoder": {name: decoder[name] for name in few}}
    optimizer = make_optimizer(training, steps_per_epoch)
    replicated = state.step.sharding
    opt_state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated),
        jax.eval_shape(optimizer.init, params),
    )
    name, layer = next(iter(state.batch_stats["encoder"].items()))
    batch_stats = {"encoder": {name: layer}}
    small = dataclasses.replace(
        state,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        ema_params=None if state.ema_params is None else params,
        ema_batch_stats=None if state.ema_batch_stats is None else batch_stats,
    )
    return dataclasses.replace(program, state=small)


def cheap_program(model, training, steps_per_epoch, mesh, *, flip, objective):
    """The program of a run whose update only counts: parameters grow by 1 with every update."""
    program = small_program(model, training, steps_per_epoch, mesh, flip=flip)

    def place(tree):
        return jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), tree, program.state)

    def init(batch, seed):
        state = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), program.state)
        return place(dataclasses.replace(state, seed=seed))

    def update(state, batch):
        step = int(state.step) + 1
        faults = FAULTS["always"] | (FAULTS["once"] if state.health.rollbacks == 0 else {})
        nelbo = np.float32(faults.get(step, 10))
        if training.learning_rate * easing(state.health) > 1:
            nelbo = np.float32(np.inf)
        applied = np.isfinite(nelbo)
        grown = jax.tree.map(lambda x: np.asarray(x) + np.float32(applied), state.params)
        health = after_update(training, state.health, step, np.float32(1), applied)
        state = dataclasses.replace(state, step=np.int32(step), params=grown, health=health)
        names = ("nelbo", "reconstruction", "kl", "loss", "gradient_norm")
        metrics = dict.fromkeys(names, nelbo) | {"kl_weight": 0.0, "skipped": 1 - int(applied)}
        metrics |= {"skipped_in_a_row": health.skipped}
        return place(state), metrics | {"group_kl": np.ones(model.total_groups, np.float32)}

    return dataclasses.replace(program, init=init, update=update)


def cheap_validation(*_):
    """A validation that finds the same NELBO every time, unless it is told otherwise."""

    def validate(variables):
        steps = int(np.asarray(jax.tree.leaves(variables["params"])[0]).flat[0])
        nelbo = FAULTS["validation"].pop(steps, 1.0)
        return {"nelbo": nelbo, "reconstruction": 1.0, "kl": 0.0}

    return validate


def faults():
    """What goes wrong in a test, and in no test after it, for a fixture."""
    yield FAULTS
    for kind in FAULTS.values():
        kind.clear()


def users(folder):
    """A user in an empty folder, for a fixture."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        stand_in(patch)
        yield User(folder)


def stand_in(patch):
    """Has training use the stand-ins."""
    patch.setattr(loop, "make_mesh", lambda **_: ONE_DEVICE)
    patch.setattr(loop, "make_program", cheap_program)
    patch.setattr(loop, "compiled_ahead", lambda function, *_, **__: function)
    patch.setattr(loop, "make_validation", cheap_validation)
    patch.setattr(trouble, "diagnose", lambda *_: "the report\n")
    patch.setattr(loop, "make_pictures", lambda *_: lambda variables: {})


def signal_at(step, number):
    """Has the cheap update send a signal to this process when it has done so many steps."""
    make_program = loop.make_program

    def with_signal(*args, **kwargs):
        program = make_program(*args, **kwargs)

        def update(state, batch):
            state, metrics = program.update(state, batch)
            if int(state.step) == step:
                os.kill(os.getpid(), number)
            return state, metrics

        return dataclasses.replace(program, update=update)

    loop.make_program = with_signal


def asked_to_stop():
    """Sends SIGTERM to this process and waits for its end."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)


def arrays(run, step, name):
    """The arrays of an entry of a checkpoint, by path."""
    tree = (
        importlib.import_module("orbax.checkpoint")
        .PyTreeCheckpointer()
        .restore(os.path.abspath(f"{run}/checkpoints/{step}/state"))
    )
    leaves = jax.tree_util.tree_leaves_with_path(tree[name])
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def applied(user, run):
    """How many updates the last checkpoint has; all checkpoints are finite."""
    checkpoints = Workdir(run).checkpoints
    for step in checkpoints.steps():
        for name in ("params", "opt_state", "batch_stats"):
            assert all(np.isfinite(x).all() for x in arrays(run, step, name).values())
    (value,) = {x for array in arrays(run, 9, "params").values() for x in np.unique(array)}
    return value
