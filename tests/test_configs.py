import dataclasses
import functools
import importlib
import json
import math
import pkgutil

import jax
import pytest

import configs
from configs import default, image_folder
from nvae_jax.config.run import read_run
from nvae_jax.config.training import TrainingConfig
from nvae_jax.data.loading import LoadingConfig
from nvae_jax.data.sources import DATASETS
from nvae_jax.errors import ConfigError
from nvae_jax.fields import names_of
from nvae_jax.model import ModelConfig, variable_shapes
from nvae_jax.model.families import FAMILIES
from nvae_jax.objectives.table import OBJECTIVES

NAMES = [module.name for module in pkgutil.iter_modules(configs.__path__)]

# Parameters of the paper's models (NVAE, appendix A), as counted in the original implementation,
# and of all others, as counted here.
PAPER = {
    "mnist": 33_363_134,
    "cifar10": 130_852_480,
    "imagenet32": 268_509_444,
    "celeba64": 153_281_364,
    "celebahq256": 330_798_664,
    "ffhq256": 330_798_664,
}
PARAMETERS = PAPER | {
    "celeba64_conv_vae": 1_183_283,
    "celeba64_one_gpu": PAPER["celeba64"],
    "cifar10_multiscale": 257_176_336,
    "cifar10_one_gpu": PAPER["cifar10"],
    "cifar_bench": 2_206_432,
    "default": 188_456,
    "digits": 1_261_806,
    "digits_conv_vae": 983_905,
    "digits_large": 2_089_518,
    "digits_one_group": 1_251_707,
    "ffhq256_24ch": 214_250_352,
    "ffhq256_one_gpu": 214_250_352,
    "image_folder": 18_714_892,
    "imagenet64": PAPER["celeba64"],
    "lsun_bedroom128": 91_828_394,
    "lsun_bedroom256": PAPER["celebahq256"],
    "lsun_church128": 91_828_394,
    "lsun_church64": PAPER["celeba64"],
    "lsun_tower": PAPER["celeba64"],
    "mnist_bench": PAPER["mnist"],
    "omniglot": PAPER["mnist"],
    "photos32": 306_648,
    "stacked_mnist": 33_392_420,
}


@functools.cache  # many configurations share a model
def count_parameters(model):
    parameters = variable_shapes(model)["params"]
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(parameters))


def load(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    if name == "image_folder":
        config.data.path = "photos"  # need not be there
    return config


@pytest.mark.parametrize("name", NAMES)
def test_config_is_valid_and_its_model_is_the_one_it_says(name):
    model = read_run(load(name)).model
    computed = {"dtype": "float32"} | ({"remat": "none"} if model.name == "nvae" else {})
    count = count_parameters(dataclasses.replace(model, **computed))
    assert count == PARAMETERS[name]
    documentation = importlib.import_module(f"configs.{name}").__doc__
    assert f"--config configs/{name}.py" in documentation


def test_every_config_has_its_parameters_pinned():
    assert set(PARAMETERS) == set(NAMES)


@pytest.mark.parametrize("name", ["digits", "digits_conv_vae", "digits_one_group", "photos32"])
def test_config_fits_its_data(name):
    run = read_run(load(name))
    dataset = run.open_data()
    assert dataset.image.shape == run.model.image_shape == dataset.test[0].shape
    assert dataset.train[0].shape[-1] == run.model.image_shape[-1]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_the_same_when_it_is_read_again(name):
    run = read_run(load(name))
    assert read_run(json.loads(json.dumps(run.to_dict()))) == run


def test_default_has_every_field_with_its_default():
    for name, dataset in DATASETS.items():
        config = default.get_config(name)
        fields = dict(config.data)
        assert fields.pop("name") == name
        assert set(fields) == set(names_of(dataset))
    for cls, section in (
        (LoadingConfig, config.loading),
        (TrainingConfig, config.training),
    ):
        assert set(section) == set(names_of(cls))
    for family in FAMILIES:
        fields = dict(default.get_config("digits", family).model)
        assert fields.pop("name") == family
        assert set(fields) == set(names_of(FAMILIES[family].config))
    for name, objective in OBJECTIVES.items():
        fields = dict(default.get_config("digits", "conv_vae", name).objective)
        assert fields == {"name": name} | dataclasses.asdict(objective())
    set_there = {"epochs": 100, "batch_size": 32}
    for field in dataclasses.fields(TrainingConfig):
        assert config.training[field.name] == set_there.get(field.name, field.default)
    derived = {"image_shape": None, "border": None, "likelihood": None}
    for field in dataclasses.fields(ModelConfig):
        assert config.model[field.name] == derived.get(field.name, field.default)


@pytest.mark.parametrize(
    ("section", "field", "value", "message"),
    [
        ("model", "depth", 3, "model.depth is unknown"),
        ("model", "num_groups", 0, "model.num_groups is 0"),
        ("model", "num_groups", "many", "model.num_groups is 'many'"),
        ("model", "image_shape", (28, 28, 1), "model.image_shape"),
        ("model", "likelihood", "normal", "model.likelihood is 'normal'"),
        ("model", "border", 0, "model.border is 0"),
        ("training", "learning_rate", -1.0, "training.learning_rate is -1.0"),
        ("training", "steps", 10, "training.steps is unknown"),
        ("data", "name", "cats", "data.name is 'cats'"),
        ("data", "size", 64, "data.size is 64"),
        ("loading", "num_workers", -1, "loading.num_workers is -1"),
        (None, "extra", 1, "config.extra is unknown"),
        (None, "model", 1, "model is 1; allowed: a section of fields"),
    ],
)
def test_what_is_impossible_is_refused_by_name(section, field, value, message):
    config = load("digits")
    with config.unlocked(), config.ignore_type():
        (config if section is None else config[section])[field] = value
    with pytest.raises(ConfigError, match="^" + message):
        read_run(config)


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [("cpu32", 536_468), ("cpu64", 1_872_940), ("large_gpu", 123_080_804)],
)
def test_presets_for_own_images_are_runs_chosen_by_name(preset, parameters):
    config = image_folder.get_config(preset)
    config.data.path = "photos"
    model = read_run(config).model
    assert count_parameters(dataclasses.replace(model, remat="none")) == parameters


def test_another_preset_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=r"image_folder.py:laptop'; allowed: cpu32, cpu64, small"):
        image_folder.get_config("laptop")
