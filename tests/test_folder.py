"""A folder of mixed images: the splits, the shapes, and what is broken."""

import hashlib
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import stored
from PIL import Image

from nvae_jax.data.loader import train_batches
from nvae_jax.data.sources import data_config
from nvae_jax.data.sources.checked import Verdict
from nvae_jax.data.sources.folder import list_images, name_hash, split_files
from nvae_jax.errors import ConfigError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_mixed_images_all_come_to_one_shape(tmp_path):
    root = tmp_path / "images"
    names = stored.write_mixed(root)
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
    for i in range(30):
        Image.fromarray(stored.photos(1, 64, 80, seed=i)[0]).save(root / f"{i}.png")
    dataset = data_config("image_folder", path=str(root), size=32).open()
    copy = pickle.loads(pickle.dumps(dataset))
    for source, i in ((dataset.train, 3), (dataset.test, 0), (copy.train, 3)):
        resized = Image.open(source.records[i]).resize((40, 32), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(source[i], np.asarray(resized)[:, 4:36])


def verdicts_of(contents):
    """Verdicts of readable files from their contents by name."""
    return {name: Verdict(1, None, str(content)) for name, content in contents.items()}


def test_split_does_not_move():
    names = [f"{folder}/{i}.png" for folder in "ab" for i in range(5000)]
    files = verdicts_of({name: name for name in names})
    train, test = map(set, split_files(files, 0.1))
    assert (train & test, len(train | test)) == (set(), len(names))
    # Four standard deviations of a binomial count.
    assert abs(len(test) - 1000) < 4 * np.sqrt(10_000 * 0.1 * 0.9)
    # A larger fraction only adds to the test split; where there are fewer images, none moves.
    assert test < set(split_files(files, 0.2)[1])
    fewer = {name: files[name] for name in names[::3]}
    assert set(split_files(fewer, 0.1)[1]) == test & set(fewer)
    assert name_hash("a/0.png") == int(hashlib.sha256(b"a/0.png").hexdigest()[:16], 16) / 2**64


def test_copies_are_on_one_side():
    contents = {f"{i}.png": i % 50 for i in range(500)}
    train, test = split_files(verdicts_of(contents), 0.3)
    assert len(train) + len(test) == 500
    assert {contents[name] for name in train} & {contents[name] for name in test} == set()


def test_what_a_run_knows_stays_on_its_side():
    before = {f"{i}.png": i for i in range(200)}
    train, test = split_files(verdicts_of(before), 0.3)
    known = {"train": dict.fromkeys(train, 1), "test": dict.fromkeys(test, 1)}
    # Copies with names that sort first, of which each alone would move some images.
    more = {f"{j} of {i}.png": i for i in range(200) for j in range(3)} | before
    more = dict(sorted(more.items()))
    moved = split_files(verdicts_of(more), 0.3)
    assert set(test) - set(moved[1])
    new_train, new_test = split_files(verdicts_of(more), 0.3, known)
    assert {*train} <= {*new_train}
    assert {*test} <= {*new_test}
    assert {more[name] for name in new_train} & {more[name] for name in new_test} == set()
    # A training image that became one of testing is that.
    changed = before | {train[0]: before[test[0]]}
    assert {train[0], *test} <= {*split_files(verdicts_of(changed), 0.3, known)[1]}
    # A run that knows no names has the splits of any other.
    assert split_files(verdicts_of(before), 0.3, {"train": 150, "test": 50}) == (train, test)


def test_files_that_are_no_images_are_none(tmp_path):
    for name in ("a.heic", "b.HEIC", "c.mpg", "d.pdf", "e.mov"):
        (tmp_path / name).write_bytes(b"else")
    with pytest.raises(ConfigError, match=r"2 files are left out, of kinds .*: .heic; allowed"):
        data_config("image_folder", path=str(tmp_path), size=8).open()
    for i in range(4):
        Image.fromarray(stored.photos(1, 16, 16, seed=i)[0]).save(tmp_path / f"{i}.png")
    dataset = data_config("image_folder", path=str(tmp_path), size=8).open()
    assert len(dataset.train) + len(dataset.test) == 4


def test_too_many_pixels_are_to_be_scaled_down(tmp_path, monkeypatch):
    for i in range(2):
        Image.fromarray(stored.photos(1, 16, 16, seed=i)[0]).save(tmp_path / f"{i}.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ConfigError, match=r"it has more than 200 pixels; scale it down first"):
        data_config("image_folder", path=str(tmp_path), size=8).open()


@pytest.mark.parametrize("number", range(2, 13))
@pytest.mark.parametrize("fraction", [1e-9, 0.1, 1 - 1e-9])
def test_each_side_has_an_image(number, fraction):
    train, test = split_files(verdicts_of({f"{i}.png": i for i in range(number)}), fraction)
    assert min(len(train), len(test)) >= 1
    assert len(train) + len(test) == number


def test_one_image_is_refused_in_all_its_copies(tmp_path):
    for name in ("a.png", "b.png"):
        Image.fromarray(stored.photos(1, 16, 16)[0]).save(tmp_path / name)
    with pytest.raises(ConfigError, match=r"2 or more different images .of 2 it has 1"):
        data_config("image_folder", path=str(tmp_path), size=8).open()


def test_each_file_and_folder_counts_once(tmp_path):
    root = tmp_path / "images"
    names = stored.write_mixed(root, 12)
    outside = tmp_path / "outside"
    outside.mkdir()
    Image.fromarray(stored.photos(1, 16, 16, seed=99)[0]).save(outside / "there.png")
    (root / "0 before all.png").symlink_to(root / names[-1])
    (root / "0 first").symlink_to(root / "a")
    (root / "a" / "again").symlink_to(root)
    (root / "self").symlink_to(".")
    (root / "x").symlink_to("y")
    (root / "y").symlink_to("z")
    (root / "z").symlink_to("x")
    os.link(root / names[0], root / "zz hard.png")
    (root / "outside").symlink_to(outside)
    (root / "outside again").symlink_to(outside)
    # By the first of its paths without a link, or else by the first of its paths.
    assert list_images(root) == sorted([*names, "outside/there.png"])
    (root / "dangling.png").symlink_to("nowhere")
    assert "dangling.png" in list_images(root)  # so that it is reported as unreadable


def test_kinds_that_are_not_read_are_counted_in_the_log(tmp_path):
    stored.write_mixed(tmp_path, 6)
    for name in ("a.HEIC", "b.heic", "c.dng", ".d.heic"):
        (tmp_path / name).write_bytes(b"else")
    dataset = data_config("image_folder", path=str(tmp_path), size=8).open()
    assert dataset.notes == ("3 files are left out, of kinds that are not read: .dng, .heic",)


def test_copies_are_counted_in_the_log(tmp_path):
    for i in range(6):
        Image.fromarray(stored.photos(1, 16, 16, seed=i % 4)[0]).save(tmp_path / f"{i}.png")
    dataset = data_config("image_folder", path=str(tmp_path), size=8).open()
    assert dataset.notes == ("2 of the images are copies of others, kept in the same split",)
    assert sum(map(len, dataset.manifest.values())) == 6


def test_one_corrupt_file_in_a_thousand_is_found_at_the_start(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    for i in range(1000):
        content = stored.encode(np.full((4, 4, 3), (i % 256, i // 256, 7), np.uint8), "png")
        (root / f"{i:03d}.png").write_bytes(content)
    (root / "123.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(
        ValueError, match=r"1 of 1000 files are unreadable: 123.png \(.*unreadable=skip"
    ):
        data_config("image_folder", path=str(root), size=8).open()
    dataset = data_config("image_folder", path=str(root), size=8, unreadable="skip").open()
    assert len(dataset.train) + len(dataset.test) == 999
    assert "123.png" not in (*dataset.train.records.names, *dataset.test.records.names)
    (note,) = dataset.notes
    assert "unreadable: 123.png (" in note


def test_of_many_unreadable_files_some_are_named(tmp_path):
    root = tmp_path / "images"
    stored.write_mixed(root, 6)
    for i in range(7):
        (root / f"bad{i}.png").write_bytes(b"torn")
    with pytest.raises(ConfigError) as caught:
        data_config("image_folder", path=str(root), size=8).open()
    message = str(caught.value)
    assert "7 of 14 files are unreadable: bad0.png (" in message
    assert "bad4.png" in message
    assert "bad5.png" not in message
    assert "and 2 more; remove them, or leave them out" in message


def test_a_pipe_is_left_out_and_the_reason_names_no_object_of_python(tmp_path):
    root = tmp_path / "images"
    stored.write_mixed(root, 6)
    os.mkfifo(root / "pipe.png")
    (root / "bad.png").write_bytes(b"torn")
    with pytest.raises(ConfigError, match=r"of \d+ files are unreadable: bad\.png \([^<]*\);"):
        data_config("image_folder", path=str(root), size=8).open()


def test_file_that_breaks_later_is_named(tmp_path):
    root = tmp_path / "images"
    stored.write_mixed(root)
    dataset = data_config("image_folder", path=str(root), size=8).open()
    path = Path(dataset.train.records[3])
    path.unlink()
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))} cannot be read: .*No such file"):
        dataset.train[3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "nowhere"}, "data.path is 'nowhere'; allowed: a folder$"),
        (
            {"path": "empty"},
            r"data.path is 'empty', without images; allowed: a folder with images \(.jpg, .png",
        ),
        ({"size": 0}, "data.size is 0; allowed: a positive int"),
        ({"size": (8, 8, 3)}, r"data.size is \(8, 8, 3\)"),
        ({"channels": 2}, "data.channels is 2; allowed: 1, 3, 4"),
        (
            {"fit": "squeeze"},
            "data.fit is 'squeeze'; allowed: 'crop', 'random_crop', 'stretch', 'pad'",
        ),
        ({"test_fraction": 0.0}, "data.test_fraction is 0.0; allowed: between 0 and 1"),
        ({"unreadable": "hide"}, "data.unreadable is 'hide'; allowed: 'error', 'skip'"),
    ],
)
def test_impossible_options_are_refused_by_name(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    stored.write_mixed(tmp_path / "images", 6)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        data_config("image_folder", **{"path": "images", "size": 8} | options).open()
