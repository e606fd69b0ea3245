"""Runs without TensorFlow, TFDS and clu: all is there but what is theirs."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import stored
from PIL import Image
from tiny import RUN
from xla import xla_flags

from nvae_jax.data.sources import data_config
from nvae_jax.errors import ConfigError
from nvae_jax.evaluation.inception_weights import from_graph

ABSENT = ("tensorflow", "tensorflow_datasets", "clu")
ROOT = Path(__file__).parents[1]

PROGRAM = """
import importlib, os, pkgutil, sys
sys.modules.update(dict.fromkeys({absent!r}))  # importing one is an ImportError
import nvae_jax

for module in pkgutil.walk_packages(nvae_jax.__path__, "nvae_jax."):
    if ".builders" not in module.name and "__main__" not in module.name:
        importlib.import_module(module.name)

from nvae_jax.configs import default

for name in ("numpy_arrays", "image_folder"):
    config = default.get_config(name)
    config.data.path = name
    with config.unlocked():
        config.update_from_flattened_dict({run!r})
    if name == "image_folder":
        config.data.update(size=32, channels=1)
        config.training.batch_size = 8
        config.model.num_mixtures = 1
    nvae_jax.train(config, "runs/" + name)
    assert not os.path.exists(f"runs/{{name}}/tensorboard")
    assert open(f"runs/{{name}}/log.txt").read().count("no TensorBoard files") == 1

run = nvae_jax.load("runs/numpy_arrays")
assert run.sample(2, batch_size=2).shape == (2, 32, 32, 1)
assert not {absent!r} & {{name for name, module in sys.modules.items() if module}}
"""


def test_runs_on_arrays_and_folders_do_without_them(tmp_path):
    for split, number in (("train", 16), ("test", 8)):
        (tmp_path / "numpy_arrays").mkdir(exist_ok=True)
        np.save(tmp_path / "numpy_arrays" / f"{split}.npy", stored.photos(number, 32, 32)[..., :1])
    (tmp_path / "image_folder").mkdir()
    for i, levels in enumerate(stored.photos(20, 32, 32, seed=1)):
        Image.fromarray(levels).save(tmp_path / "image_folder" / f"{i}.png")
    changes = RUN | {
        "training.epochs": 2,
        "training.batch_size": 8,
        "training.warmup_epochs": 0,
        "model.num_mixtures": 1,
        "model.remat": "none",
    }
    program = PROGRAM.format(absent=set(ABSENT), run=changes)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "XLA_FLAGS": xla_flags(1)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.mark.parametrize("absent", ABSENT[:2])
def test_what_needs_one_of_them_says_so(monkeypatch, absent):
    monkeypatch.setitem(sys.modules, absent, None)
    needs = {
        "tensorflow": (lambda: from_graph(b""), "a frozen graph of TensorFlow requires tensorflow"),
        "tensorflow_datasets": (
            lambda: data_config("cifar10").open(),
            "the dataset cifar10 requires tensorflow-datasets, .*: pip install tensorflow-datasets",
        ),
    }
    use, message = needs[absent]
    with pytest.raises(ConfigError, match=message):
        use()
