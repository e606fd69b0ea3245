import os
import types

import numpy as np
import pytest
import stored
from PIL import Image
from tiny import ONE_DEVICE, make_run

from nvae_jax.data.sources import data_config
from nvae_jax.errors import ConfigError
from nvae_jax.evaluation.inputs import fixed_split, load_images, with_images
from nvae_jax.evaluation.trained import open_run
from nvae_jax.modes.edit import EditOptions


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


@pytest.mark.parametrize(("number", "last"), [(1, 0), (3, 2), (8, 7), (20, 7)])
def test_without_names_the_first_test_images_are_meant(number, last):
    model = types.SimpleNamespace(dataset=types.SimpleNamespace(test=range(number)))
    assert with_images(model, EditOptions("vary"), 8).images == (f"test:0-{last}",)
    named = EditOptions("vary", ("me.png",))
    assert with_images(model, named, 8) is named


def test_a_file_is_cut_scaled_and_gets_the_border(model, tmp_path):
    pixels = np.zeros((28, 56), np.uint8)
    pixels[:, 14:42] = 255  # what is left when the middle is cut out
    Image.fromarray(pixels).convert("RGB").save(tmp_path / "a.png")
    (x,) = load_images(model, [str(tmp_path / "a.png")], "images")
    expected = np.zeros((32, 32, 1))
    expected[2:30, 2:30] = 1
    np.testing.assert_array_equal(x, expected)


def save_odd_files(folder):
    """Files of kinds that a plain conversion reads otherwise than training does."""
    image = Image.fromarray(stored.photos(1, 40, 60)[0])
    orientation = Image.Exif()
    orientation[0x0112] = 6
    image.save(folder / "rotated.jpg", exif=orientation, quality=95)
    deep = np.asarray(image.convert("L"), np.uint16) * 257
    Image.fromarray(deep).save(folder / "deep.png")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(folder / "alpha.png")
    image.convert("RGB").quantize(16).save(folder / "palette.png")
    image.convert("CMYK").save(folder / "inks.jpg")
    image.convert("RGB").save(folder / "plain.png")
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad", "random_crop"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_files_are_read_as_training_reads_them(tmp_path, fit, channels):
    names = save_odd_files(tmp_path)
    data = data_config("image_folder", path=str(tmp_path), size=16, channels=channels, fit=fit)
    dataset = data.open()
    run = types.SimpleNamespace(data=data)
    config = types.SimpleNamespace(image=data.image)
    model = types.SimpleNamespace(run=run, config=config, dataset=dataset)
    known = dict(zip(dataset.test.records.names, dataset.test, strict=True))
    if fit != "random_crop":  # in which training images are larger
        known |= dict(zip(dataset.train.records.names, dataset.train, strict=True))
        assert sorted(known) == names
    files = [str(tmp_path / name) for name in known]
    x = load_images(model, files, "images")
    np.testing.assert_allclose(x, np.stack(list(known.values())) / 255, atol=1e-7)


def test_levels_without_a_range_are_refused(model, tmp_path):
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ConfigError, match=r"float.tif', which cannot be read \(floating-point"):
        load_images(model, [str(tmp_path / "float.tif")], "images")


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


def test_a_pipe_is_refused_and_not_waited_for(model, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ConfigError, match=r"pipe\.png', which cannot be read \(it is no file\)"):
        load_images(model, [str(tmp_path / "pipe.png")], "images")


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
