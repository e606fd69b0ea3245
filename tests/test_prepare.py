"""Preparation: what it makes, what it refuses, and what it leaves behind when it fails."""

import errno
import io
import re
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import stored

from nvae_jax.data.builders import Celebahq256, Ffhq256, LsunScenes, Omniglot28, conversion
from nvae_jax.data.lsun import NUM_IMAGES
from nvae_jax.data.prepare import prepare
from nvae_jax.data.sources import DATASETS, data_config
from nvae_jax.data.sources.tfds import find_builder
from nvae_jax.errors import ConfigError


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Every download fails at once."""

    def refuse(url, *args, **kwargs):
        raise OSError(f"no network for {getattr(url, 'full_url', url)}")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def assert_nothing_whole(data_dir, name):
    """No dataset and nothing half-written that could be taken for one."""
    assert not list(Path(data_dir).glob(f"{name}/**/dataset_info.json"))
    assert not list(Path(data_dir).glob(f"{name}/**/*array_record*"))


def test_recipes_name_builders_and_files_that_exist(tmp_path):
    recipes = [dataset.stored for dataset in DATASETS.values() if hasattr(dataset, "stored")]
    recipes += [data_config("lsun", category=c, size=64).recipe for c in NUM_IMAGES]
    assert len(recipes) == 9 + 10
    for recipe in recipes:
        builder = find_builder(recipe.builder, str(tmp_path))
        known = {info.filename for info in (builder.url_infos or {}).values()}
        for file in recipe.files:
            assert file in known or file.startswith("https://"), file


def test_every_lsun_category_has_its_checksums():
    infos = {info.filename: info for info in LsunScenes.url_infos.values()}
    for category in NUM_IMAGES:
        for split in ("train", "val"):
            assert len(infos[f"{category}_{split}_lmdb.zip"].checksum) == 64


def test_prepared_once_is_enough(tmp_path, capsys):
    stored.prepare_omniglot(tmp_path)
    (tmp_path / "downloads" / "manual" / "chardata.mat").unlink()
    dataset = stored.prepare_quietly(tmp_path, "omniglot")
    assert (len(dataset.train), len(dataset.test)) == (stored.TRAIN, stored.TEST)
    assert not list(tmp_path.rglob("*.preparing")) + list(tmp_path.rglob(".preparing"))


def test_what_is_bundled_needs_no_preparation():
    assert prepare(data_config("digits")).name == "digits"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cifar10", r"cifar-10-binary.tar.gz\n +as .*manual/cifar-10-bin"),
        ("omniglot", r"chardata.mat\n +as .*downloads/manual/chardata.mat"),
        ("celeba64", r"img_align_celeba.zip\n(.*\n)*Google Drive refuses"),
        ("imagenet32", r"train_32x32.tar\n(.*\n)*image-net.org no longer offers"),
        (
            "ffhq256",
            r"ffhq/, a folder (.*\n)*.*in .*downloads/manual\n.*90 GB",
        ),
        ("lsun", r"tower_train_lmdb.zip\n +as .*\n +http.*tower_val_lmdb.zip"),
    ],
)
def test_what_cannot_be_fetched_is_asked_for_by_hand(tmp_path, name, expected):
    options = {"category": "tower", "size": 64} if name == "lsun" else {}
    said = io.StringIO()
    message = r"could not be prepared in .*: .*; what to fetch by hand is listed above"
    with pytest.raises(ConfigError, match=message) as error:
        stored.prepare_quietly(tmp_path, name, said=said, **options)
    assert name == "ffhq256" or "no network" in str(error.value)
    assert re.search(rf"{expected}(.*\n)*Then run the same command again", said.getvalue())
    assert_nothing_whole(tmp_path, "*")


def test_too_small_a_disk_is_refused_before_any_work(tmp_path):
    with pytest.raises(ConfigError, match=r"ffhq256 needs up to 27.5 GB in .*; 1.0 GB are free"):
        stored.prepare_quietly(tmp_path, "ffhq256", free_bytes=10**9)
    assert_nothing_whole(tmp_path, "ffhq256")


def test_disk_that_fills_up_leaves_nothing_half_written_and_is_resumed(tmp_path, monkeypatch):
    images = stored.write_ffhq(stored.manual_dir(tmp_path))
    converted = []
    to_png = conversion.to_png

    def fill(source, target, geometry):
        if len(converted) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        converted.append(source.name)
        to_png(source, target, geometry)

    monkeypatch.setattr("nvae_jax.data.builders.ffhq256.to_png", fill)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    with (
        stored.small_ffhq(),
        pytest.raises(ConfigError, match=r"no space left for ffhq256 in .*;"),
    ):
        stored.prepare_quietly(tmp_path, "ffhq256")
    assert_nothing_whole(tmp_path, "ffhq256")
    with pytest.raises(ValueError, match="has no ffhq256"):
        data_config("ffhq256", data_dir=str(tmp_path)).open()
    # With space again, only what is missing is converted.
    done = set(converted)
    converted.clear()
    monkeypatch.setattr(
        "nvae_jax.data.builders.ffhq256.to_png",
        lambda *args: converted.append(args[0].name) or to_png(*args),
    )
    with stored.small_ffhq():
        dataset = stored.prepare_quietly(tmp_path, "ffhq256")
    assert len(dataset.train) + len(dataset.test) == len(images)
    assert not done & set(converted)
    assert len(done) + len(converted) == len(images)
    assert not (tmp_path / "downloads" / "ffhq256.converted").exists()


def test_what_a_killed_preparation_left_is_cleared(tmp_path):
    left = tmp_path / "omniglot28" / "incomplete.ABCDEF_1.0.0"
    left.mkdir(parents=True)
    (left / "omniglot28-train.array_record-00000-of-00001").write_bytes(b"half")
    stored.prepare_omniglot(tmp_path)
    assert not left.exists()


def test_two_preparations_at_once_are_refused(tmp_path):
    import fcntl

    folder = tmp_path / "omniglot28"
    folder.mkdir()
    with (folder / ".preparing").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another process is preparing"):
            stored.prepare_quietly(tmp_path, "omniglot")


def test_other_files_than_the_published_ones_are_refused(tmp_path):
    stored.write_chardata(stored.manual_dir(tmp_path))
    with pytest.raises(ValueError, match=f"chardata.mat is not the file with MD5 {Omniglot28.md5}"):
        stored.prepare_quietly(tmp_path, "omniglot")
    (stored.manual_dir(tmp_path) / "cifar-10-binary.tar.gz").write_bytes(b"another file")
    with pytest.raises(ValueError, match="has wrong checksum"):
        stored.prepare_quietly(tmp_path, "cifar10")
    assert_nothing_whole(tmp_path, "*")


def test_missing_ffhq_images_are_counted(tmp_path):
    stored.write_ffhq(stored.manual_dir(tmp_path))
    with pytest.raises(ValueError, match=r"lacks 69990 of 70000 images, 00010.png among them"):
        stored.prepare_quietly(tmp_path, "ffhq256")


def test_torn_ffhq_image_is_named(tmp_path):
    stored.write_ffhq(stored.manual_dir(tmp_path))
    path = next(stored.manual_dir(tmp_path).rglob("00003.png"))
    path.write_bytes(path.read_bytes()[:1000])
    with stored.small_ffhq(), pytest.raises(ValueError, match=r"00003.png cannot be read"):
        stored.prepare_quietly(tmp_path, "ffhq256")
    assert_nothing_whole(tmp_path, "ffhq256")


def test_ffhq_is_checked_against_its_description(tmp_path, monkeypatch):
    import hashlib
    import json

    stored.write_ffhq(stored.manual_dir(tmp_path))
    root = stored.manual_dir(tmp_path) / "ffhq"
    sums = {p.name: hashlib.md5(p.read_bytes()).hexdigest() for p in root.rglob("*.png")}
    sums["00007.png"] = "0" * 32
    description = {
        str(i): {"image": {"file_path": f"images1024x1024/00000/{name}", "file_md5": md5}}
        for i, (name, md5) in enumerate(sums.items())
    }
    (root / "ffhq-dataset-v2.json").write_text(json.dumps(description))
    with stored.small_ffhq(), pytest.raises(ValueError, match=r"v2.json has not the MD5 425ae2"):
        stored.prepare_quietly(tmp_path, "ffhq256")
    md5 = hashlib.md5((root / "ffhq-dataset-v2.json").read_bytes()).hexdigest()
    monkeypatch.setattr("nvae_jax.data.builders.ffhq256.DESCRIPTION_MD5", md5)
    with stored.small_ffhq(), pytest.raises(ValueError, match=r"00007.png has not the MD5 that"):
        stored.prepare_quietly(tmp_path, "ffhq256")


def test_glows_archive_with_too_few_images_is_refused(tmp_path):
    images = stored.photos(4, 256, 256)
    splits = {"train": images[:3], "validation": images[3:]}
    stored.write_celeba_tfr(stored.manual_dir(tmp_path), splits)
    with (
        mock.patch.object(Celebahq256, "numbers", {"train": 4, "validation": 1}),
        pytest.raises(ValueError, match=r"train has 3 images in 2 files; expected: 4"),
    ):
        stored.prepare_quietly(tmp_path, "celebahq256")
    assert_nothing_whole(tmp_path, "celebahq256")


def test_files_of_the_original_need_no_preparation(tmp_path):
    levels = [x.tobytes() for x in stored.photos(3, 32, 32)]
    stored.write_official_lmdb(tmp_path, {"train": levels[:2], "validation": levels[2:]})
    dataset = stored.prepare_quietly(tmp_path / "none", "imagenet32", lmdb=str(tmp_path))
    np.testing.assert_array_equal(dataset.test[0].tobytes(), levels[2])
    assert not (tmp_path / "none").exists()


def test_numbers_of_images_fit_the_paper():
    assert Ffhq256.number - Ffhq256.number_to_train == 7_000
    assert Celebahq256.numbers == {"train": 27_000, "validation": 3_000}
