"""A folder of mixed images: the splits, the shapes, and what is broken."""

import hashlib
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import stored
from PIL import Image

from nvae_jax.data.loader import train_batches
from nvae_jax.data.sources import checked, data_config
from nvae_jax.data.sources.folder import is_test, list_images
from nvae_jax.errors import ConfigError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_mixed(root, number=60):
    """Images of many sizes, modes, formats and sub-folders; returns their names."""
    rng = np.random.default_rng(0)
    for i in range(number):
        height, width = (int(s) for s in rng.integers(20, 90, 2))
        image = Image.fromarray(stored.photos(1, height, width, seed=i)[0])
        mode = ["RGB", "L", "LA", "RGBA", "P", "CMYK"][i % 6]
        suffix = {"CMYK": ".jpg", "L": ".JPEG", "RGB": ".webp"}.get(mode, ".png")
        path = root / ("", "a", "a/b")[i % 3] / f"image {i}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.convert(mode).save(path)
    deep = (stored.photos(1, 40, 50)[0, ..., 0].astype(np.uint16)) << 8
    Image.fromarray(deep).save(root / "deep.png")
    (root / "readme.txt").write_text("not an image")
    (root / ".hidden.png").write_text("not to be read")
    (root / ".cache").mkdir()
    (root / ".cache" / "thumbnail.png").write_text("not to be read")
    return list_images(root)


def test_mixed_images_all_come_to_one_shape(tmp_path):
    root = tmp_path / "images"
    names = write_mixed(root)
    assert len(names) == 61
    for fit in ("crop", "stretch", "pad", "random_crop"):
        dataset = data_config("image_folder", path=str(root), size=(16, 24), fit=fit).open()
        assert len(dataset.train) + len(dataset.test) == 61
        for i in range(len(dataset.test)):
            assert dataset.test[i].shape == (16, 24, 3)
        batch = next(train_batches(dataset, 16, seed=0))
        assert batch["image"].shape == (16, 16, 24, 3)
    grey = data_config("image_folder", path=str(root), size=16, channels=1, flip=True).open()
    assert grey.train[0].shape == grey.image.shape == (16, 16, 1)
    assert grey.flip


def test_pixels_are_those_of_the_file(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    image = stored.photos(1, 64, 80)[0]
    for i in range(30):
        Image.fromarray(image).save(root / f"{i}.png")
    dataset = data_config("image_folder", path=str(root), size=32).open()
    resized = Image.fromarray(image).resize((40, 32), Image.Resampling.BILINEAR)
    expected = np.asarray(resized)[:, 4:36]
    np.testing.assert_array_equal(dataset.train[3], expected)
    np.testing.assert_array_equal(dataset.test[0], expected)
    copy = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(copy.train[3], expected)


def test_split_never_moves():
    names = [f"{folder}/{i}.png" for folder in "ab" for i in range(5000)]
    test = {name for name in names if is_test(name, 0.1)}
    # Four standard deviations of a binomial count.
    assert abs(len(test) - 1000) < 4 * np.sqrt(10_000 * 0.1 * 0.9)
    # A larger fraction only adds to the test split.
    assert test < {name for name in names if is_test(name, 0.2)}
    first = int(hashlib.sha256(b"a/0.png").hexdigest()[:16], 16) / 2**64
    assert is_test("a/0.png", first + 1e-9)
    assert not is_test("a/0.png", first - 1e-9)


def test_one_corrupt_file_in_a_thousand_is_found_at_the_start(tmp_path, caplog):
    root = tmp_path / "images"
    root.mkdir()
    content = stored.encode(stored.photos(1, 16, 16)[0], "png")
    for i in range(1000):
        (root / f"{i:03d}.png").write_bytes(content)
    (root / "123.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(
        ValueError, match=r"1 of 1000 files are unreadable: 123.png \(.*unreadable=skip"
    ):
        data_config("image_folder", path=str(root), size=8).open()
    dataset = data_config("image_folder", path=str(root), size=8, unreadable="skip").open()
    assert len(dataset.train) + len(dataset.test) == 999
    assert "123.png" not in (*dataset.train.records.names, *dataset.test.records.names)
    assert "unreadable: 123.png (" in caplog.text


def test_of_many_unreadable_files_some_are_named(tmp_path):
    root = tmp_path / "images"
    write_mixed(root, 6)
    for i in range(7):
        (root / f"bad{i}.png").write_bytes(b"torn")
    with pytest.raises(ConfigError) as caught:
        data_config("image_folder", path=str(root), size=8).open()
    message = str(caught.value)
    assert "7 of 14 files are unreadable: bad0.png (" in message
    assert "bad4.png" in message
    assert "bad5.png" not in message
    assert "and 2 more; remove them, or leave them out" in message


def test_what_was_read_once_is_not_read_again(tmp_path, monkeypatch):
    root = tmp_path / "images"
    names = write_mixed(root, 10)
    (root / "broken.png").write_bytes(b"")
    names.append("broken.png")
    reads = []
    original = checked._why_unreadable
    monkeypatch.setattr(
        checked, "_why_unreadable", lambda path: reads.append(path.name) or original(path)
    )
    assert list(checked.find_unreadable(root, names)) == ["broken.png"]
    assert len(reads) == len(names)
    assert list(checked.find_unreadable(root, names)) == ["broken.png"]
    assert len(reads) == len(names)
    (root / "broken.png").write_bytes(stored.encode(stored.photos(1, 8, 8)[0], "png"))
    assert checked.find_unreadable(root, names) == {}
    assert reads[len(names) :] == ["broken.png"]


def test_file_that_breaks_later_is_named(tmp_path):
    root = tmp_path / "images"
    write_mixed(root)
    dataset = data_config("image_folder", path=str(root), size=8).open()
    path = Path(dataset.train.records[3])
    path.unlink()
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))} cannot be read: .*No such file"):
        dataset.train[3]


def test_cache_that_cannot_be_written_does_not_matter(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    names = write_mixed(tmp_path / "images", 3)
    assert checked.find_unreadable(tmp_path / "images", names) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "nowhere"}, "data.path is 'nowhere'; allowed: a folder$"),
        ({"path": "empty"}, r"data.path is 'empty'; allowed: a folder with images \(.jpg, .png"),
        ({"size": 0}, "data.size is 0; allowed: a positive int"),
        ({"size": (8, 8, 3)}, r"data.size is \(8, 8, 3\)"),
        ({"channels": 2}, "data.channels is 2; allowed: 1, 3, 4"),
        (
            {"fit": "squeeze"},
            "data.fit is 'squeeze'; allowed: 'crop', 'random_crop', 'stretch', 'pad'",
        ),
        ({"test_fraction": 0.0}, "data.test_fraction is 0.0; allowed: between 0 and 1"),
        ({"test_fraction": 1e-9}, "data.test_fraction is 1e-09, .* to test; allowed: more images"),
        ({"test_fraction": 1 - 1e-9}, "to train; allowed: more images"),
        ({"unreadable": "hide"}, "data.unreadable is 'hide'; allowed: 'error', 'skip'"),
    ],
)
def test_impossible_options_are_refused_by_name(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    write_mixed(tmp_path / "images", 6)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        data_config("image_folder", **{"path": "images", "size": 8} | options).open()
