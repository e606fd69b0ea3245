import dataclasses
import functools
import importlib
import math
import pkgutil

import jax
import pytest

import configs
from nvae_jax.config import from_mapping
from nvae_jax.data.loader import LoadingConfig
from nvae_jax.model import ModelConfig, variable_shapes
from nvae_jax.training.loop import read_config
from nvae_jax.config.training import TrainingConfig

NAMES = [module.name for module in pkgutil.iter_modules(configs.__path__)]

# NVAE, appendix A; the parameters as counted in the original implementation.
PAPER = {
    "mnist": 33_363_134,
    "cifar10": 130_852_480,
    "imagenet32": 268_509_444,
    "celeba64": 153_281_364,
    "celebahq256": 330_798_664,
    "ffhq256": 330_798_664,
}


@functools.cache  # many configurations share a model
def count_parameters(model):
    parameters = variable_shapes(model)["params"]
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(parameters))


def load(name):
    return importlib.import_module(f"configs.{name}").get_config()


def test_default_lists_every_field_with_its_default():
    config = load("default")
    for cls, section in (
        (ModelConfig, config.model),
        (LoadingConfig, config.loading),
        (TrainingConfig, config.training),
    ):
        fields = {field.name: field.default for field in dataclasses.fields(cls)}
        assert set(section) == set(fields)
        for name, default in fields.items():
            if default is not dataclasses.MISSING:
                assert section[name] == default, name


@pytest.mark.parametrize("name", NAMES)
def test_config_is_valid_and_its_model_has_a_shape(name):
    config = load(name)
    model = from_mapping(ModelConfig, config.model, "model")
    from_mapping(TrainingConfig, config.training, "training")
    count = count_parameters(dataclasses.replace(model, dtype="float32", remat="none"))
    assert count == PAPER.get(name, count)
    assert (
        f"--config configs/{name}.py" in (importlib.import_module(f"configs.{name}").__doc__ or "")
        or name == "default"
    )


def test_every_paper_config_is_there():
    assert set(PAPER) <= set(NAMES)


@pytest.mark.parametrize("name", ["digits", "digits_one_group", "photos32"])
def test_config_fits_its_data(name):
    model, dataset, _ = read_config(load(name))
    assert dataset.train[0].shape[-1] == model.image_shape[-1]


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
        (None, "extra", 1, "extra is unknown"),
    ],
)
def test_what_is_impossible_is_refused_by_name(section, field, value, message):
    config = load("digits")
    with config.unlocked(), config.ignore_type():
        (config if section is None else config[section])[field] = value
    with pytest.raises(ValueError, match="^" + message):
        read_config(config)
