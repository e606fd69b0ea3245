import numpy as np
import pytest
from PIL import Image
from tiny import ONE_DEVICE, make_run

from nvae_jax.data.sources import data_config
from nvae_jax.errors import ConfigError
from nvae_jax.evaluation.inputs import fixed_split, load_images
from nvae_jax.evaluation.trained import open_run


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return open_run(make_run(tmp_path_factory.mktemp("run")), ONE_DEVICE)


def test_names_stand_for_examples_binarised_once_and_for_all(model):
    x = load_images(model, ["test:3-5", "train:2"], "images")
    assert x.shape == (4, 32, 32, 1)
    assert set(np.unique(x)) == {0, 1}
    np.testing.assert_array_equal(load_images(model, ["test:4"], "images")[0], x[1])
    levels = model.dataset.train[2] / 255
    assert (x[3][levels == 0] == 0).all()
    assert (x[3][levels == 1] == 1).all()


def test_a_file_is_cut_scaled_and_gets_the_border(model, tmp_path):
    pixels = np.zeros((28, 56), np.uint8)
    pixels[:, 14:42] = 255  # what is left when the middle is cut out
    Image.fromarray(pixels).convert("RGB").save(tmp_path / "a.png")
    (x,) = load_images(model, [str(tmp_path / "a.png")], "images")
    expected = np.zeros((32, 32, 1))
    expected[2:30, 2:30] = 1
    np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"images is \(\); allowed: test:3"),
        (["test:1000"], "images is 'test:1000'; allowed: test:0 to test:"),
        (["train:5-3"], "images is 'train:5-3'; allowed: train:0 to train:1499"),
    ],
)
def test_images_that_are_not_there_are_refused(model, names, message):
    with pytest.raises(ValueError, match=message):
        load_images(model, names, "images")
    with pytest.raises(ConfigError, match=r"images is 'nothing\.png', which cannot be read"):
        load_images(model, ["nothing.png"], "images")


def test_random_crops_are_fixed_crops_in_evaluation():
    dataset = data_config("photos", size=(16, 24), crops_per_epoch=6).open()
    split = fixed_split(dataset, "train")
    assert len(split) == 6
    assert split[4].shape == (16, 24, 3)
    np.testing.assert_array_equal(split[4], split[4])
    assert not np.array_equal(split[0], split[2])  # two crops of the same photograph
    assert fixed_split(dataset, "test") is dataset.test
    with pytest.raises(ValueError, match="split is 'validation'; allowed: train, test"):
        fixed_split(dataset, "validation")
