import pickle

import numpy as np
import pytest
import stored

from nvae_jax.data.sources import data_config
from nvae_jax.errors import ConfigError

OPTIONS = {"binarize": True, "flip": True, "border": 2}


@pytest.fixture
def images():
    return stored.digits28(12)


def write_folder(path, train, test):
    path.mkdir()
    np.save(path / "train.npy", train)
    np.save(path / "test.npy", test)
    return str(path)


def assert_holds(dataset, train, test):
    pad = ((0, 0), (2, 2), (2, 2), (0, 0))
    for source, expected in ((dataset.train, train), (dataset.test, test)):
        np.testing.assert_array_equal(
            np.stack([source[i] for i in range(len(source))]), np.pad(expected, pad)
        )
    assert dataset.image.shape == (32, 32, 1)
    assert (dataset.image.binarize, dataset.flip, dataset.image.border) == (True, True, 2)


def test_folder_is_mapped_and_survives_pickling_as_a_path(tmp_path, images):
    path = write_folder(tmp_path / "digits", images[:9], images[9:])
    dataset = data_config("numpy_arrays", path=path, **OPTIONS).open()
    assert_holds(dataset, images[:9], images[9:])
    assert len(pickle.dumps(dataset)) < 1000
    assert_holds(pickle.loads(pickle.dumps(dataset)), images[:9], images[9:])


def test_grey_images_need_no_channel_axis(tmp_path, images):
    path = write_folder(tmp_path / "digits", images[:9, ..., 0], images[9:, ..., 0])
    dataset = data_config("numpy_arrays", path=path, **OPTIONS).open()
    assert_holds(dataset, images[:9], images[9:])


def test_archive_is_read_at_once(tmp_path, images):
    np.savez_compressed(tmp_path / "digits.npz", train=images[:9], test=images[9:])
    dataset = data_config("numpy_arrays", path=str(tmp_path / "digits.npz"), **OPTIONS).open()
    assert_holds(dataset, images[:9], images[9:])


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def test_broken_files_are_named(tmp_path, images):
    path = write_folder(tmp_path / "digits", images[:9], images[9:])
    truncate(tmp_path / "digits" / "test.npy")
    with pytest.raises(ValueError, match=r"test.npy', which cannot be read"):
        data_config("numpy_arrays", path=path).open()
    (tmp_path / "digits" / "test.npy").unlink()
    with pytest.raises(ValueError, match=r"test.npy', which cannot be read \(No such file"):
        data_config("numpy_arrays", path=path).open()
    np.savez(tmp_path / "digits.npz", train=images, test=images)
    truncate(tmp_path / "digits.npz")
    with pytest.raises(ValueError, match=r"data.path is .*digits.npz', which cannot be read"):
        data_config("numpy_arrays", path=str(tmp_path / "digits.npz")).open()
    np.savez(tmp_path / "digits.npz", train=images)
    with pytest.raises(ValueError, match=r"'test is not a file in the archive'"):
        data_config("numpy_arrays", path=str(tmp_path / "digits.npz")).open()


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (np.zeros((3, 28, 28, 1), np.float32), r"holds float32 of shape \(3, 28, 28, 1\)"),
        (np.zeros((3, 28), np.uint8), r"holds uint8 of shape \(3, 28\); allowed: uint8 of shape"),
        (np.zeros((0, 28, 28), np.uint8), r"\(0, 28, 28\), which is no image; allowed: one im"),
        (np.zeros((2, 3, 28, 28), np.uint8), r"axis 1 seems to be the channels; allowed: .*N, H"),
        (np.zeros((2, 1, 28, 28), np.uint8), r"np.moveaxis\(images, 1, -1\)"),
        (np.zeros((3, 28, 28, 3), np.uint8), "with images of shapes"),
    ],
)
def test_other_arrays_are_refused(tmp_path, images, train, message):
    with pytest.raises(ValueError, match=message):
        data_config("numpy_arrays", path=write_folder(tmp_path / "digits", train, images)).open()


def test_files_under_another_name_are_refused(tmp_path, images):
    path = write_folder(tmp_path / "digits", images[:9], images[9:])
    npy, npz = tmp_path / "digits" / "train.npy", tmp_path / "digits.npz"
    npy.rename(npz)
    with pytest.raises(
        ConfigError, match=r"digits.npz', which cannot be read \(it is an .npy file"
    ):
        data_config("numpy_arrays", path=str(npz)).open()
    np.savez(npz, train=images)
    npz.rename(npy)
    with pytest.raises(ConfigError, match=r"train.npy', which cannot be read \(it is an .npz file"):
        data_config("numpy_arrays", path=path).open()
    np.save(npy, np.array([{}], object), allow_pickle=True)
    with pytest.raises(ConfigError, match=r"train.npy', which cannot be read \(it holds no plain"):
        data_config("numpy_arrays", path=path).open()


def test_negative_border_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"data.border is -1; allowed: 0 or more"):
        data_config("numpy_arrays", path=str(tmp_path), border=-1).open()
