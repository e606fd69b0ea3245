"""A whole run on a tiny model: its files, its end, and what an interruption changes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from configs import digits
from nvae_jax.training.loop import train
from nvae_jax.workdir import Workdir

ROOT = Path(__file__).parent.parent

TINY = {
    "model.num_scales": 1,
    "model.num_groups": 2,
    "model.num_latents": 2,
    "model.encoder_channels": 4,
    "model.decoder_channels": 4,
    "model.architecture": "res_bnswish",
    "training.epochs": 2,
    "training.batch_size": 256,
    "training.warmup_epochs": 1,
    "training.log_interval": 2,
    "training.eval_interval": 4,
    "training.picture_interval": 10,
    "training.checkpoint_interval": 3,
}
STEPS = 2 * (1500 // 256)


def tiny_config(**changes):
    config = digits.get_config()
    config.update_from_flattened_dict(TINY | changes)
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    return path, train(tiny_config(), str(path))


def test_run_leaves_what_it_promises(run):
    path, last = run
    assert last["step"] == STEPS
    records = Workdir(path).read_metrics()
    assert [r["step"] for r in records if "train/nelbo" in r] == [2, 4, 6, 8, 10]
    assert [r["step"] for r in records if "validation/nelbo" in r] == [4, 8, 10]
    names = set().union(*records)
    for name in (
        "train/nelbo_bits_per_dim",
        "train/spectral_penalty",
        "train/batch_norm_penalty",
        "train/regularization",
        "train/learning_rate",
        "train/gradient_norm",
        "train/images_per_second",
        "train/group_kl/1",
        "train/group_active/0",
        "train/group_balance/1",
        "validation/group_kl/0",
    ):
        assert name in names
    log = (path / "log.txt").read_text()
    assert "independent pixels" in log
    assert "left" in log
    pictures = {p.name for p in (path / "pictures").iterdir()}
    assert pictures == {"samples_000010.png", "reconstructions_000010.png", "curves.png"}
    assert Image.open(path / "pictures" / "samples_000010.png").size == (8 * 30 + 2, 4 * 30 + 2)
    assert any((path / "tensorboard").iterdir())


def test_validation_falls_and_is_its_parts(run):
    records = [r for r in Workdir(run[0]).read_metrics() if "validation/nelbo" in r]
    values = [r["validation/nelbo"] for r in records]
    assert values[-1] < values[0]
    for r in records:
        parts = r["validation/reconstruction"] + r["validation/kl"]
        np.testing.assert_allclose(r["validation/nelbo"], parts, rtol=1e-6)
        groups = r["validation/group_kl/0"] + r["validation/group_kl/1"]
        np.testing.assert_allclose(r["validation/kl"], groups, rtol=1e-6)


def test_finished_run_started_again_changes_nothing(run):
    path, last = run
    before = (path / "metrics.jsonl").read_text()
    assert train(tiny_config(), str(path)) == last
    assert (path / "metrics.jsonl").read_text() == before


def test_other_config_in_the_same_folder_is_refused(run):
    with pytest.raises(ValueError, match=r"training\.seed is 1; saved: 0"):
        train(tiny_config(**{"training.seed": 1}), str(run[0]))


def test_loss_that_is_not_finite_stops_the_run_and_keeps_checkpoints(tmp_path):
    changes = {"training.learning_rate": 1e30, "training.warmup_epochs": 0}
    with pytest.raises(FloatingPointError, match=r"training\.gradient_clip"):
        train(tiny_config(**changes), str(tmp_path))
    assert Workdir(tmp_path).latest_step() is None


def test_killed_run_ends_as_if_it_had_not_been(tmp_path):
    flags = [f"--config.{name}={value}" for name, value in TINY.items()]
    command = [sys.executable, "-m", "nvae_jax.main", "--config=configs/digits.py", *flags]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"), "XLA_FLAGS": ""}
    options = {"cwd": ROOT, "env": os.environ | cache}
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    subprocess.run([*command, f"--workdir={unbroken}"], **options, check=True)

    process = subprocess.Popen([*command, f"--workdir={broken}"], **options)
    metrics = broken / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (metrics.exists() and '"step": 6' in metrics.read_text()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    subprocess.run([*command, f"--workdir={broken}"], **options, check=True)

    assert "resumed after step" in (broken / "log.txt").read_text()
    expected, actual = final_arrays(unbroken), final_arrays(broken)
    assert expected.keys() == actual.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(actual[name], array, err_msg=name)
    steps = [r["step"] for r in map(json.loads, metrics.read_text().splitlines())]
    assert steps == sorted(steps)


def final_arrays(path):
    """The arrays of the last checkpoint by name, read without any code of the run."""
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.restore(path / "checkpoints" / str(STEPS) / "state")
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(key): np.asarray(leaf) for key, leaf in leaves}
