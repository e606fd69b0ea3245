import inspect

import numpy as np
import pytest

from nvae_jax.data.sources import DATASETS, Dataset, check_levels, data_config
from nvae_jax.image_spec import ImageSpec


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


@pytest.mark.parametrize(("highest", "refused"), [(0, False), (1, True), (2, False), (255, False)])
def test_images_of_numbers_from_0_to_1_are_refused(highest, refused):
    images = np.zeros((40, 4, 4, 1), np.uint8)
    images[-1, 2, 2] = highest
    dataset = Dataset("mine", ImageSpec(4, 4, 1), images, images)
    if not refused:
        check_levels(dataset)
        return
    with pytest.raises(ValueError, match=r"highest level of 16 .* of mine is 1; allowed: levels"):
        check_levels(dataset)
