"""The paper's datasets from their files: every pixel, against Pillow and the specification."""

import io
import pickle
import shutil

import numpy as np
import pytest
import stored
from PIL import Image

from nvae_jax.data.loader import train_batches
from nvae_jax.data.sources import data_config, read_many
from nvae_jax.data.sources.characters import Stacked

BILINEAR = Image.Resampling.BILINEAR


def images_of(source):
    images = [source[i] for i in range(len(source))]
    backwards = read_many(source, range(len(source) - 1, -1, -1))
    for image, again in zip(images, reversed(backwards), strict=True):
        np.testing.assert_array_equal(image, again)
    return images


def assert_same_images(actual, expected):
    """The same images in any order, for TFDS shuffles them once and for all."""
    expected = [np.asarray(image) for image in expected]
    assert {image.shape for image in actual} == {image.shape for image in expected}
    assert sorted(x.tobytes() for x in actual) == sorted(x.tobytes() for x in expected)


@pytest.mark.parametrize("name", ["mnist", "omniglot"])
def test_binarised_datasets(prepared, name):
    folder, made = prepared
    dataset = data_config(name, data_dir=str(folder)).open()
    assert dataset.image.shape == (32, 32, 1)
    assert (dataset.image.binarize, dataset.image.border, dataset.flip) == (True, 2, False)
    images = np.pad(made[name], ((0, 0), (2, 2), (2, 2), (0, 0)))
    assert_same_images(images_of(dataset.train), images[: stored.TRAIN])
    assert_same_images(images_of(dataset.test), images[stored.TRAIN :])


@pytest.mark.parametrize(
    ("name", "size"), [("cifar10", 32), ("imagenet32", 32), ("imagenet64", 64)]
)
def test_small_colour_datasets(prepared, name, size):
    folder, made = prepared
    dataset = data_config(name, data_dir=str(folder)).open()
    assert dataset.image.shape == (size, size, 3)
    assert (dataset.image.binarize, dataset.image.border, dataset.flip) == (False, 0, True)
    assert_same_images(images_of(dataset.train), made[name][: stored.TRAIN])
    assert_same_images(images_of(dataset.test), made[name][stored.TRAIN :])


@pytest.mark.parametrize(
    ("options", "box"), [({}, (15, 40, 163, 188)), ({"crop": "center"}, (5, 25, 173, 193))]
)
def test_celeba_is_a_crop_resized(prepared, options, box):
    folder, made = prepared
    dataset = data_config("celeba64", data_dir=str(folder), **options).open()
    faces = [
        Image.open(io.BytesIO(file)).crop(box).resize((64, 64), BILINEAR)
        for file in made["celeba64"]
    ]
    assert_same_images(images_of(dataset.train), faces[: stored.TRAIN])
    assert_same_images(images_of(dataset.test), faces[stored.TRAIN :])
    assert dataset.flip


def test_ffhq_is_resized_and_split_for_good(prepared):
    folder, made = prepared
    dataset = data_config("ffhq256", data_dir=str(folder)).open()
    small = [Image.fromarray(x).resize((256, 256), BILINEAR) for x in made["ffhq256"]]
    order = np.random.RandomState(0).permutation(10)
    assert_same_images(images_of(dataset.train), [small[i] for i in order[:8]])
    assert_same_images(images_of(dataset.test), [small[i] for i in order[8:]])


def test_celebahq_keeps_glows_split(prepared):
    folder, made = prepared
    dataset = data_config("celebahq256", data_dir=str(folder)).open()
    assert_same_images(images_of(dataset.train), made["celebahq256"][:8])
    assert_same_images(images_of(dataset.test), made["celebahq256"][8:])


def test_lsun_is_resized_by_the_shorter_side_and_cropped(prepared):
    folder, made = prepared
    dataset = data_config("lsun", category="bedroom", size=64, data_dir=str(folder)).open()
    assert dataset.name == "lsun_bedroom64"
    originals = [Image.open(io.BytesIO(file)) for file in made["bedroom"]]
    assert {image.size for image in originals} == {(340, 256), (256, 300)}
    resized = [
        image.resize((64 * image.width // 256, 64 * image.height // 256), BILINEAR)
        for image in originals
    ]
    # In training a part of the whole resized image, at a place drawn anew each time.
    train = [np.asarray(image) for image in resized]
    assert sorted(x.tobytes() for x in images_of(dataset.train)) == sorted(
        x.tobytes() for x in train
    )
    batches = train_batches(dataset, 10, seed=0)
    corners = set()
    for batch in (next(batches) for _ in range(4)):
        for image, index in zip(batch["image"], batch["index"], strict=True):
            whole = dataset.train[index]
            views = np.lib.stride_tricks.sliding_window_view(whole, (64, 64, 3))[:, :, 0]
            (place, *_) = np.argwhere((views == image).all(axis=(2, 3, 4)))
            corners.add(tuple(place))
    batches.close()
    assert len(corners) > 10
    # To test, the middle.
    assert {image.shape for image in images_of(dataset.test)} == {(64, 64, 3)}
    test = dataset.test.records
    for i, image in enumerate(images_of(dataset.test)):
        original = Image.open(io.BytesIO(test[i])).resize((64, 75), BILINEAR)
        np.testing.assert_array_equal(image, np.asarray(original)[6:70])


def test_stacked_mnist_uses_every_digit_twice_in_each_channel(prepared):
    folder, _ = prepared
    mnist = data_config("mnist", data_dir=str(folder)).open()
    stacked = data_config("stacked_mnist", data_dir=str(folder)).open()
    assert stacked.image.shape == (32, 32, 3)
    assert (stacked.image.binarize, stacked.image.border) == (False, 2)
    assert len(stacked.train) == 2 * len(mnist.train)
    digits = images_of(mnist.train)
    for channel in range(3):
        assert_same_images(
            [x[..., channel : channel + 1] for x in images_of(stacked.train)], 2 * digits
        )
    again = data_config("stacked_mnist", data_dir=str(folder)).open()
    np.testing.assert_array_equal(images_of(stacked.test), images_of(again.test))


def test_channels_of_stacked_images_are_independent_permutations():
    indices = Stacked(np.zeros((100, 1, 1, 1), np.uint8), seed=0).indices
    assert indices.shape == (200, 3)
    for channel in range(3):
        for half in (indices[:100, channel], indices[100:, channel]):
            np.testing.assert_array_equal(np.sort(half), np.arange(100))
    correlations = np.corrcoef(indices.T)[np.triu_indices(3, 1)]
    assert abs(correlations).max() < 4 / np.sqrt(200)


def test_sources_go_to_other_processes(prepared):
    folder, _ = prepared
    dataset = data_config("celeba64", data_dir=str(folder)).open()
    copy = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(copy.train[3], dataset.train[3])


def test_unprepared_and_broken_datasets_say_what_to_do(prepared, tmp_path):
    with pytest.raises(ValueError, match=r"data.data_dir is .* has no cifar10; .*--mode prepare"):
        data_config("cifar10", data_dir=str(tmp_path)).open()
    folder, _ = prepared
    shutil.copytree(folder / "cifar10", tmp_path / "cifar10")
    (file,) = (tmp_path / "cifar10").rglob("*train.array_record*")
    content = file.read_bytes()
    for broken in (content[: len(content) // 2], content[:-1], b""):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match=r"train.array_record.* cannot be read .*prepare"):
            data_config("cifar10", data_dir=str(tmp_path)).open()
    (other,) = (tmp_path / "cifar10").rglob("*test.array_record*")
    file.write_bytes(other.read_bytes())
    message = f"has {stored.TEST} examples of {stored.TRAIN}; delete"
    with pytest.raises(ValueError, match=message):
        data_config("cifar10", data_dir=str(tmp_path)).open()
    file.unlink()
    with pytest.raises(ValueError, match=r"train.array_record.* cannot be read"):
        data_config("cifar10", data_dir=str(tmp_path)).open()


def test_damage_inside_a_file_is_an_error_where_it_is_read(prepared, tmp_path):
    folder, _ = prepared
    shutil.copytree(folder / "cifar10", tmp_path / "cifar10")
    (file,) = (tmp_path / "cifar10").rglob("*train.array_record*")
    content = bytearray(file.read_bytes())
    middle = len(content) // 3
    content[middle : middle + 2000] = bytes(2000)
    file.write_bytes(content)
    dataset = data_config("cifar10", data_dir=str(tmp_path)).open()
    message = r"example \d+ of .*cifar10.*\(train\) cannot be read"
    with pytest.raises(ValueError, match=message):
        images_of(dataset.train)
    with pytest.raises(ValueError, match=message):
        read_many(dataset.train, range(len(dataset.train)))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lsun", {"category": "attic", "size": 64}, "data.category is 'attic'; allowed: bedroom, "),
        ("lsun", {"category": "tower", "size": 257}, "data.size is 257; allowed: 1 to 256"),
        ("stacked_mnist", {"seed": -1}, "data.seed is -1; allowed: 0 or more"),
    ],
)
def test_impossible_options_are_refused_by_name(name, options, message):
    with pytest.raises(ValueError, match=message):
        data_config(name, **options).open()
