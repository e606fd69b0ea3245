"""Runs in Python: what goes in, what comes out, and that it is what the modes say."""

import doctest
import subprocess
import sys

import chex
import jax
import numpy as np
import pytest
from PIL import Image
from tiny import ONE_DEVICE, RUN_CONFIG, make_run

import nvae_jax
from nvae_jax import api
from nvae_jax.api import autoencoder
from nvae_jax.api import run as runs
from nvae_jax.configs import digits
from nvae_jax.errors import ConfigError
from nvae_jax.evaluation import trained
from nvae_jax.evaluation.inputs import pixels_of
from nvae_jax.modes.evaluate import EvaluateOptions, evaluate
from nvae_jax.modes.sample import SampleOptions, sample

HEAVY = {"jax", "numpy", "flax", "absl", "nvae_jax.api"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "runs" / "digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(trained, "make_mesh", lambda: ONE_DEVICE)
        yield nvae_jax.load("runs/digits")


def test_importing_it_imports_nothing_else():
    program = "import sys, nvae_jax; print(nvae_jax.__version__, *sys.modules)"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout
    version, *modules = out.split()
    assert version == nvae_jax.__version__
    assert not HEAVY & set(modules)
    assert set(nvae_jax.__all__) <= set(dir(nvae_jax))
    with pytest.raises(AttributeError, match="'nvae_jax' has no attribute 'lod'"):
        nvae_jax.lod  # noqa: B018


@pytest.mark.parametrize("module", [api, runs, autoencoder], ids=lambda module: module.__name__)
def test_examples_are_true(run, module):
    failed, tried = doctest.testmod(module, extraglobs={"nvae_jax": nvae_jax, "run": run})
    assert tried > 0
    assert failed == 0


def test_an_image_is_the_same_in_all_its_forms(run):
    levels = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    bordered = np.pad(levels, 2)
    x, alone = pixels_of(run.trained, levels)
    assert alone
    chex.assert_shape(x, (1, 32, 32, 1))
    np.testing.assert_array_equal(np.unique(x), [0, 1])
    forms = [
        levels[..., None],
        bordered,
        levels / 255,
        (levels / 255).astype(np.float32),
        jax.numpy.asarray(bordered / 255)[..., None],
        Image.fromarray(levels),
        Image.fromarray(levels).convert("RGB"),
        x[0],  # as the model sees it
    ]
    for form in forms:
        again, alone = pixels_of(run.trained, form)
        assert alone
        np.testing.assert_array_equal(again, x)
    for batch in ([levels, Image.fromarray(levels)], np.stack([levels, levels])):
        both, alone = pixels_of(run.trained, batch)
        assert not alone
        chex.assert_shape(both, (2, 32, 32, 1))
        np.testing.assert_array_equal(both[0], x[0])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], r"images is \[\]; allowed: one image or more"),
        (np.zeros((0, 28, 28, 1)), r"images is \(0, 28, 28, 1\); allowed: one image or more"),
        (np.zeros((28, 27)), r"shape of images is \(28, 27, 1\); allowed: \(28, 28, 1\), as this"),
        (np.zeros((2, 28, 28, 3)), r"shape of images is \(28, 28, 3\); allowed: \(28, 28, 1\)"),
        (np.zeros((28, 28), int), "images is 'int64'; allowed: uint8 from 0 to 255, or floats"),
        (np.full((28, 28), 255.0), "images is 'float64 from 255 to 255'; allowed: uint8 from 0"),
        (np.full((28, 28), np.nan), "images is 'float64'; allowed: uint8 from 0 to 255, or flo"),
    ],
)
def test_what_is_no_image_of_the_model_is_refused(run, images, message):
    with pytest.raises(ConfigError, match=message):
        run.encode(images)


def test_one_image_has_outputs_of_its_own(run):
    x = run.images("test:0-2")
    latents = run.encode(x, batch_size=4)
    alone = run.encode(x[0], batch_size=4)
    chex.assert_trees_all_close(alone, jax.tree.map(lambda z: z[0], latents), atol=1e-5)
    image = run.decode(alone, batch_size=4)
    chex.assert_shape(image, RUN_CONFIG.image.inner_shape)
    images = run.decode(latents.noise, space="noise", batch_size=4)
    np.testing.assert_allclose(image, images[0], atol=1e-4)
    np.testing.assert_allclose(run.reconstruct(x, batch_size=4), images, atol=1e-4)
    path = run.interpolate(x[0], x[1], steps=4, batch_size=4)
    means = run.reconstruct(x, posterior_temperature=0, batch_size=4)
    np.testing.assert_allclose(path[[0, -1]], means[:2], atol=1e-4)


def test_likelihoods_are_those_of_the_mode(run):
    report = evaluate(run.trained, EvaluateOptions(draws=3, images=2, batch_size=2, seed=5))
    bounds = run.log_likelihood(run.images("test:0-1"), draws=3, seed=5)
    np.testing.assert_allclose(-bounds, report["per_image"]["bound"], rtol=1e-5)


def test_samples_are_those_of_the_mode(run):
    file = sample(run.trained, SampleOptions(num_images=2, seed=5, output="npz", batch_size=4))
    images = run.sample(2, seed=5, batch_size=4)
    np.testing.assert_array_equal(np.round(255 * images), np.load(file)["images"])


def test_what_is_impossible_is_refused_by_name(run):
    x = run.images("test:0-1")
    latents = run.encode(x, batch_size=4)
    for refused, message in (
        (lambda: run.sample(0), "number is 0; allowed: 1 or more"),
        (lambda: run.sample(temperature=(1, 2, 3)), "temperature is .* allowed: 1, 2 "),
        (lambda: run.sample(seed=-1), "seed is -1; allowed: 0 to"),
        (lambda: run.reconstruct(x, scales=3), r"scales is \(3,\); allowed: 0 to 2 scales"),
        (lambda: run.reconstruct(x, scales=1, groups=1), "allowed: scales or groups, not both"),
        (lambda: run.decode(latents.values[:1]), "the shapes of the latents in latents is"),
        (lambda: run.decode(latents, scales=(2,)), r"scales is \(2,\); allowed: 0 to 1"),
        (lambda: run.encode(x, posterior_temperature=-1), "posterior_temperature is -1"),
        (lambda: run.interpolate(x, x[:1], batch_size=4), r"ends is \(2, 1\)"),
        (lambda: nvae_jax.load("nothing"), "allowed: the folder of a run"),
    ):
        with pytest.raises(ConfigError, match=message):
            refused()


def test_training_reads_every_kind_of_configuration(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(api.loop, "train", lambda run, *_, **__: seen.append(run) or {"step": 1})
    source = "from nvae_jax.configs import digits\n\nget_config = digits.get_config\n"
    (tmp_path / "mine.py").write_text(source)
    config = digits.get_config()
    for given in ("digits", tmp_path / "mine.py", config, config.to_dict()):
        assert nvae_jax.train(given, tmp_path) == {"step": 1}
    assert nvae_jax.train(seen[0], tmp_path) == {"step": 1}
    assert len(seen) == 5
    assert all(run == seen[0] for run in seen)
    with pytest.raises(ConfigError, match=r"did you mean digits\? allowed: a .py file, or one of"):
        nvae_jax.train("elsewhere/digits.py", tmp_path)
