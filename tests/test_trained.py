"""A run opened for evaluation, and what does not depend on batches and devices."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from tiny import ONE_DEVICE, RUN_CONFIG, make_run

from nvae_jax.evaluation.trained import group_temperatures, image_keys, image_noise, open_run
from nvae_jax.model import ModelConfig
from nvae_jax.parallel import make_mesh
from nvae_jax.workdir import Workdir


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


def test_a_run_is_what_its_folder_says(path):
    model = open_run(path, ONE_DEVICE)
    assert model.config == RUN_CONFIG
    assert model.step == 7
    assert model.dataset.name == "digits"
    assert set(model.variables) == {"params", "batch_stats"}


def test_averaged_parameters_are_preferred(tmp_path):
    workdir = Workdir(tmp_path)
    config = ModelConfig(
        image_shape=(32, 32, 1), likelihood="bernoulli", border=2, architecture="res_elu"
    )
    make_run(tmp_path / "other", config)
    saved = open_run(tmp_path / "other", ONE_DEVICE).variables["params"]
    averaged = jax.tree.map(lambda x: np.asarray(x) + 1, saved)
    sections = json.loads((tmp_path / "other" / "config.json").read_text())
    sections["training"]["ema_decay"] = 0.9
    workdir.save_config(ConfigDict(sections))
    workdir.save(3, {"params": saved, "ema_params": averaged, "batch_stats": {}}, {"step": 3})
    workdir.close()
    model = open_run(tmp_path, ONE_DEVICE)
    jax.tree.map(np.testing.assert_array_equal, model.variables["params"], averaged)
    assert model.variables["batch_stats"] == {}


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no work directory"):
        open_run(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("devices", [1, 8])
def test_batches_are_items_without_filling(path, devices):
    model = open_run(path, make_mesh(jax.devices()[:devices]))
    double = model.compile(lambda _, x: 2 * x)
    seen = list(model.in_batches(double, 21, 2, lambda index: index.astype(np.int32), start=3))
    assert [first for first, _ in seen] == list(range(3, 21, 2 * devices))
    np.testing.assert_array_equal(np.concatenate([x for _, x in seen]), 2 * np.arange(3, 21))
    mapped = model.map(lambda _, x: {"a": x["b"] + 1}, {"b": np.arange(5.0)}, 2)
    np.testing.assert_array_equal(mapped["a"], np.arange(5.0) + 1)


def test_noise_is_an_images_own():
    index = jnp.arange(5, dtype=jnp.uint32)
    draw = jax.jit(lambda *key: image_noise(RUN_CONFIG, image_keys(*key), 0.5))
    noise = draw(3, index, 0)
    assert [z.shape[1:] for z in noise] == list(RUN_CONFIG.latent_shapes)
    alone = draw(3, index[3:4], 0)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[3:4], b), noise, alone)
    assert len({float(z[i, 0, 0, 0]) for z in noise for i in range(5)}) == 5 * len(noise)
    others = [draw(4, index, 0), draw(3, index, 1)]
    assert all((other[0] != noise[0]).all() for other in others)
    assert 0.4 < jnp.concatenate([z.ravel() for z in noise]).std() < 0.6


def test_temperatures_are_for_all_or_a_scale_or_a_group():
    config = dataclasses.replace(RUN_CONFIG, num_groups=3, adaptive_groups=True)  # 1, then 3
    np.testing.assert_allclose(group_temperatures(config, (0.5,)), [0.5] * 4)
    np.testing.assert_allclose(group_temperatures(config, (0.5, 1)), [0.5, 1, 1, 1])
    np.testing.assert_allclose(group_temperatures(config, (1, 2, 3, 4)), [1, 2, 3, 4])
    for wrong in ((1.0, 1.0, 1.0), (-1.0,)):
        with pytest.raises(ValueError, match=r"allowed: 1, 2 \(a scale\) or 4 \(a group\)"):
            group_temperatures(config, wrong)
