"""Small datasets in their true formats on disk, made of scikit-learn's photographs and digits."""

import contextlib
import io
import tarfile
import types
import zipfile
from pathlib import Path
from unittest import mock

import lmdb
import numpy as np
from PIL import Image
from scipy.io import savemat
from sklearn.datasets import load_digits, load_sample_images

from nvae_jax.data.prepare import prepare
from nvae_jax.data.sources import data_config
from nvae_jax.data.sources.folder import list_images
from nvae_jax.data.sources.tfds import find_builder

TRAIN, TEST = 24, 6  # images in each split


def photos(number, height, width, seed=0):
    """Crops of the two photographs, (number, height, width, 3), enlarged where they are smaller."""
    rng = np.random.default_rng(seed)
    images = []
    for i in range(number):
        photo = Image.fromarray(load_sample_images().images[i % 2])
        scale = max(1, -(-height // photo.height), -(-width // photo.width))
        photo = photo.resize((scale * photo.width, scale * photo.height))
        left = int(rng.integers(photo.width - width + 1))
        top = int(rng.integers(photo.height - height + 1))
        images.append(np.asarray(photo.crop((left, top, left + width, top + height))))
    return np.stack(images)


def digits28(number, seed=0):
    """Handwritten digits, (number, 28, 28, 1)."""
    chosen = np.random.default_rng(seed).permutation(1797)[:number]
    grey = (load_digits().images[chosen] * (255 / 16)).astype(np.uint8)
    return np.stack([np.asarray(Image.fromarray(g).resize((28, 28))) for g in grey])[..., None]


def encode(image, image_format, **options):
    """The bytes of an image file."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, image_format, **options)
    return stream.getvalue()


def run_builder(name, data_dir, splits):
    """Has a TFDS builder write examples in place of those it would read from its archives."""
    builder = find_builder(name, str(data_dir))
    generators = {split: enumerate(examples) for split, examples in splits.items()}
    with mock.patch.object(type(builder), "_split_generators", return_value=generators):
        builder.download_and_prepare()


def prepare_quietly(data_dir, name, free_bytes=10**15, said=None, **options):
    """What `--mode prepare` does on a disk with so much space; `said` gets what it prints."""
    data = data_config(name, data_dir=str(data_dir), **options)
    usage = types.SimpleNamespace(free=free_bytes)
    with (
        mock.patch("shutil.disk_usage", return_value=usage),
        contextlib.redirect_stdout(said or io.StringIO()),
    ):
        return prepare(data)


def write_mnist(data_dir):
    images = digits28(TRAIN + TEST)
    examples = [{"image": image, "label": i % 10} for i, image in enumerate(images)]
    run_builder("mnist", data_dir, {"train": examples[:TRAIN], "test": examples[TRAIN:]})
    return images


def write_cifar10(data_dir):
    images = photos(TRAIN + TEST, 32, 32)
    examples = [{"image": x, "label": i % 10, "id": f"x_{i}"} for i, x in enumerate(images)]
    run_builder("cifar10", data_dir, {"train": examples[:TRAIN], "test": examples[TRAIN:]})
    return images


def write_imagenet(data_dir, size):
    images = photos(TRAIN + TEST, size, size)
    examples = [{"image": io.BytesIO(encode(x, "png"))} for x in images]
    splits = {"train": examples[:TRAIN], "validation": examples[TRAIN:]}
    run_builder(f"downsampled_imagenet/{size}x{size}", data_dir, splits)
    return images


def write_celeba(data_dir):
    """Returns the encoded images."""
    from tensorflow_datasets.datasets.celeb_a import celeb_a_dataset_builder as celeb_a

    images = [encode(x, "jpeg", quality=90) for x in photos(TRAIN + TEST, 218, 178)]
    examples = [
        {
            "image": io.BytesIO(image),
            "landmarks": dict.fromkeys(celeb_a.LANDMARK_HEADINGS, 3),
            "attributes": dict.fromkeys(celeb_a.ATTR_HEADINGS, True),
            "identity": dict.fromkeys(celeb_a.IDENTITY_HEADINGS, 7),
        }
        for image in images
    ]
    splits = {"train": examples[:TRAIN], "validation": examples[TRAIN:], "test": examples[:1]}
    run_builder("celeb_a", data_dir, splits)
    return images


def write_chardata(manual):
    """Returns the images, (N, 28, 28, 1)."""
    images = digits28(TRAIN + TEST)
    # A column is an image, column by column; halves of a level are cut off.
    columns = (images[..., 0].swapaxes(1, 2).reshape(-1, 784).T + 0.5) / 255
    savemat(manual / "chardata.mat", {"data": columns[:, :TRAIN], "testdata": columns[:, TRAIN:]})
    return images


def prepare_omniglot(data_dir):
    from nvae_jax.data.builders import Omniglot28

    images = write_chardata(manual_dir(data_dir))
    with mock.patch.object(Omniglot28, "md5", None):
        prepare_quietly(data_dir, "omniglot")
    return images


def write_ffhq(manual):
    """Returns the images of 1024x1024, by name."""
    images = photos(10, 1024, 1024)
    folder = manual / "ffhq" / "images1024x1024" / "00000"
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        (folder / f"{i:05d}.png").write_bytes(encode(image, "png", compress_level=1))
    return images


@contextlib.contextmanager
def small_ffhq():
    from nvae_jax.data.builders import Ffhq256

    with mock.patch.multiple(Ffhq256, number=10, number_to_train=8):
        yield


def prepare_ffhq(data_dir):
    images = write_ffhq(manual_dir(data_dir))
    with small_ffhq():
        prepare_quietly(data_dir, "ffhq256")
    return images


def write_celeba_tfr(manual, splits):
    """The archive of Glow's TFRecords."""
    import tensorflow as tf
    from tensorflow_datasets.proto import tf_example_pb2

    with tarfile.open(manual / "celeba-tfr.tar", "w") as archive:
        for split, images in splits.items():
            for shard in range(2):
                file = f"{split}-r08-s-{shard:04d}-of-0002.tfrecords"
                with tf.io.TFRecordWriter(str(manual / file)) as writer:
                    for image in images[shard::2]:
                        example = tf_example_pb2.Example()
                        features = example.features.feature
                        features["data"].bytes_list.value.append(image.tobytes())
                        features["shape"].int64_list.value.extend(image.shape)
                        writer.write(example.SerializeToString())
                archive.add(manual / file, f"celeba-tfr/{split}/{file}")
                (manual / file).unlink()


def prepare_celebahq(data_dir):
    from nvae_jax.data.builders import Celebahq256

    images = photos(10, 256, 256)
    splits = {"train": images[:8], "validation": images[8:]}
    write_celeba_tfr(manual_dir(data_dir), splits)
    numbers = {split: len(part) for split, part in splits.items()}
    with mock.patch.object(Celebahq256, "numbers", numbers):
        prepare_quietly(data_dir, "celebahq256")
    return images


def prepare_lsun(data_dir, category):
    """Returns the encoded training images in the order of their keys."""
    from tensorflow_datasets.core.download import checksums

    from nvae_jax.data.builders import LsunScenes

    manual, infos = manual_dir(data_dir), {}
    images = [encode(x, "jpeg", quality=75) for x in photos(8, 256, 340)]
    images += [encode(x, "jpeg", quality=75) for x in photos(4, 300, 256, seed=1)]
    for split, part in (("train", images[:10]), ("val", images[10:])):
        name = f"{category}_{split}_lmdb"
        write_lmdb(manual / name, {f"{i:08x}": image for i, image in enumerate(part)})
        with zipfile.ZipFile(manual / f"{name}.zip", "w") as archive:
            archive.write(manual / name / "data.mdb", f"{name}/data.mdb")
        info = checksums.compute_url_info(manual / f"{name}.zip")
        infos[f"http://dl.yf.io/lsun/scenes/{name}.zip"] = info
    with mock.patch.object(LsunScenes, "url_infos", infos):
        prepare_quietly(data_dir, "lsun", category=category, size=64)
    return images[:10]


def write_lmdb(path, values):
    """An LMDB folder of values by their keys."""
    with (
        lmdb.open(str(path), map_size=2**28) as environment,
        environment.begin(write=True) as writer,
    ):
        for key, value in values.items():
            writer.put(key.encode(), value)


def write_official_lmdb(folder, splits):
    """The files of the original implementation: keys are numbers."""
    for split, values in splits.items():
        write_lmdb(
            folder / f"{split}.lmdb", {str(i): bytes(value) for i, value in enumerate(values)}
        )


def manual_dir(data_dir):
    """Where files fetched by hand go."""
    folder = Path(data_dir) / "downloads" / "manual"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_mixed(root, number=60):
    """Images of many sizes, modes, formats and sub-folders; returns their names."""
    rng = np.random.default_rng(0)
    for i in range(number):
        height, width = (int(s) for s in rng.integers(20, 90, 2))
        image = Image.fromarray(photos(1, height, width, seed=i)[0])
        mode = ["RGB", "L", "LA", "RGBA", "P", "CMYK"][i % 6]
        suffix = {"CMYK": ".jpg", "L": ".JPEG", "RGB": ".webp"}.get(mode, ".png")
        path = root / ("", "a", "a/b")[i % 3] / f"image {i}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.convert(mode).save(path)
    deep = (photos(1, 40, 50)[0, ..., 0].astype(np.uint16)) << 8
    Image.fromarray(deep).save(root / "deep.png")
    (root / "readme.txt").write_text("not an image")
    (root / ".hidden.png").write_text("not to be read")
    (root / ".cache").mkdir()
    (root / ".cache" / "thumbnail.png").write_text("not to be read")
    return list_images(root)
