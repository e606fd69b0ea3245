"""A run opened for evaluation, and what does not depend on batches and devices."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny import ONE_DEVICE, RUN_CONFIG, make_run

from nvae_jax.errors import ConfigError
from nvae_jax.evaluation.inputs import SPLITS, read_pixels
from nvae_jax.evaluation.trained import group_temperatures, image_keys, image_noise, open_run
from nvae_jax.model import variable_shapes
from nvae_jax.modes.decode import DecodeOptions, decode
from nvae_jax.modes.edit import EditOptions, edit
from nvae_jax.modes.encode import EncodeOptions, encode
from nvae_jax.modes.evaluate import evaluate
from nvae_jax.modes.interpolate import InterpolateOptions, interpolate
from nvae_jax.modes.sample import SampleOptions, sample
from nvae_jax.parallel import make_mesh, replicated
from nvae_jax.workdir import Workdir, checkpoints, integrity, orbax


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


def test_a_run_is_what_its_folder_says(path):
    model = open_run(path, ONE_DEVICE)
    assert model.config == RUN_CONFIG
    assert model.step == 7
    assert model.dataset.name == "digits"
    assert set(model.variables) == {"params", "batch_stats"}


def test_averages_are_preferred(tmp_path, path):
    workdir = Workdir(tmp_path)
    saved = open_run(path, ONE_DEVICE).variables
    averages = jax.tree.map(lambda x: np.asarray(x) + 1, saved)
    sections = json.loads((path / "config.json").read_text())
    sections["training"] |= {"ema_decay": 0.9, "eval_statistics": "averaged"}
    workdir.save_config(sections)
    state = saved | {f"ema_{name}": tree for name, tree in averages.items()}
    workdir.checkpoints.save(3, state, {"step": 3})
    workdir.checkpoints.close()
    model = open_run(tmp_path, ONE_DEVICE)
    jax.tree.map(np.testing.assert_array_equal, model.variables, averages)
    sections["training"] |= {"eval_statistics": "running"}
    workdir.save_config(sections)
    model = open_run(tmp_path, ONE_DEVICE)
    wanted = {"params": averages["params"], "batch_stats": saved["batch_stats"]}
    jax.tree.map(np.testing.assert_array_equal, model.variables, wanted)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"--workdir is .*; allowed: the folder of a run"):
        open_run(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_a_damaged_checkpoint_is_passed_over(tmp_path, capsys):
    workdir = Workdir(make_run(tmp_path))
    state, _ = workdir.checkpoints.restore(shapes_of_run(), partial=True)
    workdir.checkpoints.save(9, state, {"step": 9})
    workdir.checkpoints.close()
    assert open_run(tmp_path, ONE_DEVICE).step == 9
    largest = max(tmp_path.glob("checkpoints/9/state/**/d/*"), key=lambda f: f.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    assert open_run(tmp_path, ONE_DEVICE).step == 7
    assert "step 7 is used" in capsys.readouterr().out
    assert (tmp_path / "checkpoints" / "9").is_dir()  # only training moves it


def test_a_checkpoint_that_is_not_finite_is_refused(tmp_path, monkeypatch):
    workdir = Workdir(make_run(tmp_path))
    state, _ = workdir.checkpoints.restore(shapes_of_run(), partial=True)
    name, array = next(iter(state["batch_stats"]["encoder"].items()))
    state["batch_stats"]["encoder"][name] = jax.tree.map(lambda x: x + jnp.inf, array)
    with monkeypatch.context() as patch:
        unseen = lambda tree: (integrity.inspected(tree)[0], [])  # noqa: E731
        for module in (checkpoints, orbax):  # as earlier versions saved it
            patch.setattr(module, "inspected", unseen)
        workdir.checkpoints.save(9, state, {"step": 9})
        workdir.checkpoints.close()
    with pytest.raises(ConfigError, match=rf"checkpoint 9 .* not finite in batch_stats.*{name}"):
        open_run(tmp_path, ONE_DEVICE)


def shapes_of_run():
    place = replicated(ONE_DEVICE)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        dict(variable_shapes(RUN_CONFIG)),
    )


@pytest.mark.parametrize("devices", [1, 8])
def test_batches_are_items_without_filling(path, devices):
    model = open_run(path, make_mesh(jax.devices()[:devices]))
    numbers = np.arange(18, dtype=np.int32)
    seen = list(model.over_arrays(lambda _, x: 2 * x, numbers, 2, "numbers"))
    assert [first for first, _ in seen] == list(range(0, 18, 2 * devices))
    np.testing.assert_array_equal(np.concatenate([x for _, x in seen]), 2 * numbers)
    mapped = model.map(lambda _, x: {"a": x["b"] + 1}, {"b": np.arange(5.0)}, 2, "numbers")
    np.testing.assert_array_equal(mapped["a"], np.arange(5.0) + 1)


def test_examples_of_a_split_are_pixels_whatever_the_batch(path):
    def scores(variables, x, index):
        return {"sum": x.sum((1, 2, 3)), "index": index}

    index, runs = np.array([5, 0, 7, 7, 11]), []
    for devices in (1, 8):
        model = open_run(path, make_mesh(jax.devices()[:devices]))
        source = model.dataset.test
        parts = model.over_split(scores, source, index, 2, model.progress("examples"))
        runs.append([part for _, part in parts])
    for parts in runs:
        together = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        np.testing.assert_array_equal(together["index"], index)
        x = read_pixels(RUN_CONFIG.image, source, index)
        np.testing.assert_array_equal(together["sum"], x.sum((1, 2, 3)))
    assert list(model.over_split(scores, source, index[:0], 2, model.progress("none"))) == []


@pytest.fixture(scope="module")
def colour_run(tmp_path_factory):
    """A run on CelebA-HQ, which is not on this machine."""
    config = dataclasses.replace(
        RUN_CONFIG, image_shape=(256, 256, 3), border=0, likelihood="logistic_mixture", num_bits=5
    )
    nowhere = str(tmp_path_factory.mktemp("no_data"))
    return make_run(tmp_path_factory.mktemp("run"), config, name="celebahq256", data_dir=nowhere)


def test_what_needs_no_data_works_without_it(colour_run, tmp_path, monkeypatch):
    files = []
    for i in range(2):
        levels = np.random.default_rng(i).integers(0, 256, (300, 260, 3), np.uint8)
        files.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(levels).save(files[-1])
    model = open_run(colour_run, ONE_DEVICE)
    assert sample(model, SampleOptions(num_images=2, batch_size=2)).endswith("sample/samples.png")
    latents = encode(model, EncodeOptions(tuple(files), batch_size=2))
    images = decode(model, DecodeOptions(latents, batch_size=2))
    assert images.shape == (2, 256, 256, 3)
    rows = edit(model, EditOptions("vary", tuple(files), variations=1, batch_size=2))
    assert rows.shape == (2, 3, 256, 256, 3)
    paths = interpolate(model, InterpolateOptions(samples=1, steps=2, batch_size=2))
    assert paths.shape == (1, 2, 256, 256, 3)
    assert np.isfinite(images).all()
    assert np.isfinite(paths).all()
    with pytest.raises(ConfigError, match="which has no celebahq256"):
        evaluate(model)


def test_data_is_read_where_it_has_moved_to(tmp_path):
    for name in ("before", "now"):
        (tmp_path / name).mkdir()
    np.savez(tmp_path / "now" / "a.npz", **{s: np.zeros((3, 32, 32, 1), np.uint8) for s in SPLITS})
    config = dataclasses.replace(RUN_CONFIG, likelihood="logistic_mixture", border=0)
    gone = str(tmp_path / "before" / "a.npz")
    path = make_run(tmp_path / "run", config, name="numpy_arrays", path=gone)
    with pytest.raises(ConfigError, match=f"data.path is '{gone}'"):
        open_run(path, ONE_DEVICE).dataset  # noqa: B018
    there = {"path": str(tmp_path / "now" / "a.npz")}
    assert len(open_run(path, ONE_DEVICE, there).dataset.test) == 3
    with pytest.raises(ConfigError, match=r"config.data.lmdb is 'x'; allowed: path"):
        open_run(path, ONE_DEVICE, {"lmdb": "x"})


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
        with pytest.raises(
            ValueError, match=r"allowed: 1, 2 \(one per scale\) or 4 \(one per group\)"
        ):
            group_temperatures(config, wrong)
