import inspect

import pytest

from nvae_jax.data.sources import DATASETS, make_dataset


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
        make_dataset(name, **options)


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_every_dataset_says_what_it_is(name):
    factory = DATASETS[name]
    assert factory.__name__ == name
    assert inspect.getdoc(factory)
    assert inspect.signature(factory).return_annotation.__name__ == "Dataset"
