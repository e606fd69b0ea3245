"""Datasets in TensorFlow Datasets' folders, read without TensorFlow."""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

from nvae_jax.errors import ConfigError, importing, require

DEFAULT_DIR = os.path.join("~", "tensorflow_datasets")


def data_folder(data_dir: str | None) -> str:
    """The folder of prepared datasets: `data_dir`, $TFDS_DATA_DIR, or TFDS's usual one.

    Raises:
      ConfigError: it is in a home folder, and there is none.
    """
    folder = os.path.expanduser(data_dir or os.environ.get("TFDS_DATA_DIR") or DEFAULT_DIR)
    known = not folder.startswith("~")
    require("data.data_dir", data_dir, known, f"a folder, because there is no home for {folder}")
    return folder


def find_builder(name: str, data_dir: str | None) -> Any:
    """The TFDS builder `name` (TFDS's own, or one of `nvae_jax.data.builders`) for a folder.

    Raises:
      ConfigError: the dataset is there in another format, or TFDS cannot be imported.
    """
    with importing("tensorflow-datasets", f"the dataset {name}"):
        import tensorflow_datasets as tfds

        import nvae_jax.data.builders  # noqa: F401 - registers its builders with TFDS

    folder = data_folder(data_dir)
    try:
        return tfds.builder(name, data_dir=folder, file_format="array_record")
    except ValueError as error:
        raise ConfigError(
            f"data.data_dir is {folder!r}, where {name} is in another format than array_record "
            f"({error}); choose another folder and prepare it there"
        ) from error


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsRecords:
    """The encoded images of a split, stored as array_record files.

    Attributes:
      where: the dataset's folder and split, for messages.
      examples: the serialised examples, an `ArrayRecordDataSource`.
    """

    where: str
    examples: Any

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int, /) -> bytes:
        return _image(self.examples[index])

    def many(self, indices: list[int], /) -> Iterator[bytes]:
        """The encoded images at `indices`."""
        return map(_image, self.examples.__getitems__(indices))

    def describe(self, index: int, /) -> str:
        """Where the record is stored, for messages."""
        return f"example {index} of {self.where}"


def _image(serialised: bytes) -> bytes:
    """The encoded image of a serialised example."""
    from tensorflow_datasets.proto import tf_example_pb2

    # TFDS's own deserialisation goes through all features, of which CelebA has 51.
    example = tf_example_pb2.Example.FromString(serialised)
    return example.features.feature["image"].bytes_list.value[0]


def open_split(name: str, split: str, data_dir: str | None) -> TfdsRecords:
    """Opens a split of a prepared dataset, and checks that its files are whole.

    Args:
      name: of the dataset in TFDS, with its configuration: "downsampled_imagenet/32x32".
      split: of the dataset.
      data_dir: the folder of prepared datasets; None: TFDS's usual one.

    Raises:
      ConfigError: the dataset is not prepared, in another format, or a file is missing or broken.
    """
    builder = find_builder(name, data_dir)
    if not builder.is_prepared():
        raise ConfigError(
            f"data.data_dir is {data_folder(data_dir)!r}, which has no {name}; "
            "`python -m nvae_jax.main --mode prepare` with the same --config makes it"
        )
    for file in builder.info.splits[split].file_instructions:
        _check(file.filename, file.examples_in_shard)
    import tensorflow_datasets as tfds

    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    source = builder.as_data_source(
        split, deserialize_method=raw, file_format=tfds.core.FileFormat.ARRAY_RECORD
    )
    return TfdsRecords(f"{builder.data_path} ({split})", source.data_source)


def _check(path: str, number: int) -> None:
    """Raises a ConfigError unless an array_record file is there and holds `number` records.

    Its index is at the end of the file, so a file that was cut off is found without reading it.
    """
    from array_record.python import array_record_module

    try:
        reader = array_record_module.ArrayRecordReader(path)
        found = reader.num_records()
        reader.close()
    except Exception as error:
        raise ConfigError(
            f"{path} cannot be read ({error}); delete its folder and prepare the dataset again"
        ) from error
    if found != number:
        raise ConfigError(
            f"{path} has {found} examples of {number}; delete its folder and prepare the dataset "
            "again"
        )
