import inspect

import pytest

from nvae_jax.data.sources import DATASETS, data_config


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("letters", {}, "data.name is 'letters'; allowed: celeba64, .*digits, .*stacked_mnist"),
        ("digits", {"size": 3}, "data.size is 3, but digits .* allowed: none"),
        ("photos", {"colour": "red"}, "data.colour is 'red', .* allowed: size, crops_per_epoch"),
        ("lsun", {"size": 64}, "data.category is missing; lsun needs it"),
        ("image_folder", {"path": None, "size": 64}, "data.path is missing"),
    ],
)
def test_wrong_options_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        data_config(name, **options).open()


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_every_dataset_says_what_it_is(name):
    dataset = DATASETS[name]
    assert dataset.name == name
    assert dataset.__name__.lower() == name.replace("_", "")
    assert "DataConfig(" not in inspect.getdoc(dataset)
    assert dataset.__doc__
    assert dataset.__dataclass_params__.frozen
