import concurrent.futures
import io
import pickle

import numpy as np
import pytest
import stored
from PIL import Image

from nvae_jax.data.sources import data_config
from nvae_jax.data.sources.lmdb import LmdbRecords, read_levels


def test_records_come_in_the_order_of_their_numbers(tmp_path):
    values = [f"value {i}".encode() for i in range(25)]  # the order of keys is 0, 1, 10, 11, ...
    stored.write_official_lmdb(tmp_path, {"train": values})
    records = LmdbRecords(str(tmp_path / "train.lmdb"))
    assert [records[i] for i in range(len(records))] == values
    copy = pickle.loads(pickle.dumps(records))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(copy.__getitem__, range(25))) == values


def test_single_file_is_read_too(tmp_path):
    stored.write_official_lmdb(tmp_path, {"train": [b"a", b"b"]})
    (tmp_path / "train.lmdb" / "data.mdb").rename(tmp_path / "file.lmdb")
    assert LmdbRecords(str(tmp_path / "file.lmdb"))[1] == b"b"


def test_faces_are_stored_as_jpeg(tmp_path):
    files = [stored.encode(x, "jpeg") for x in stored.photos(3, 218, 178)]
    stored.write_official_lmdb(tmp_path, {"train": files, "validation": files[:1]})
    dataset = data_config("celeba64", lmdb=str(tmp_path)).open()
    assert (len(dataset.train), len(dataset.test)) == (3, 1)
    face = Image.open(io.BytesIO(files[2]))
    expected = face.crop((15, 40, 163, 188)).resize((64, 64), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(dataset.train[2], np.asarray(expected))


@pytest.mark.parametrize(("name", "size"), [("imagenet32", 32), ("celebahq256", 256)])
def test_others_are_stored_as_levels(tmp_path, name, size):
    images = stored.photos(4, size, size)
    splits = {"train": map(np.ndarray.tobytes, images[:3]), "validation": [images[3].tobytes()]}
    stored.write_official_lmdb(tmp_path, splits)
    dataset = data_config(name, lmdb=str(tmp_path)).open()
    assert dataset.image.shape == (size, size, 3)
    np.testing.assert_array_equal([dataset.train[i] for i in range(3)], images[:3])
    np.testing.assert_array_equal(dataset.test[0], images[3])


def test_missing_keys_and_files_are_named(tmp_path):
    path = str(tmp_path / "train.lmdb")
    with pytest.raises(
        ValueError, match=r"data.lmdb is .*, which has no train.lmdb; allowed: a folder"
    ):
        data_config("ffhq256", lmdb=str(tmp_path)).open()
    stored.write_lmdb(path, {"0": b"", "1": b"", "3": b""})
    with pytest.raises(ValueError, match="lacks 1 of its 3 keys, these among them: 2; allowed"):
        LmdbRecords(path)
    stored.write_lmdb(tmp_path / "empty.lmdb", {})
    with pytest.raises(ValueError, match="lacks 0 of its 0 keys"):
        LmdbRecords(str(tmp_path / "empty.lmdb"))
    (tmp_path / "broken.lmdb").write_bytes(b"no database" * 1000)
    with pytest.raises(ValueError, match=r"broken.lmdb, which cannot be read as LMDB"):
        LmdbRecords(str(tmp_path / "broken.lmdb"))


def test_levels_of_another_size_are_refused_by_key(tmp_path):
    stored.write_official_lmdb(tmp_path, {"train": [bytes(3072), b"short"], "validation": [b""]})
    dataset = data_config("imagenet32", lmdb=str(tmp_path)).open()
    assert dataset.train[0].shape == (32, 32, 3)
    message = r"key 1 of .*train.lmdb cannot be read: 5 bytes; allowed: 32 \* 32 \* 3 = 3072"
    with pytest.raises(ValueError, match=message):
        dataset.train[1]


def test_levels_are_rows_of_pixels():
    levels = np.arange(24, dtype=np.uint8)
    image = read_levels(levels.tobytes(), 2, 4, 3)
    assert image[1, 2, 0] == 12 + 6
