"""CelebA-HQ at 256×256, as Glow released it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds


class Celebahq256(tfds.core.GeneratorBasedBuilder):
    """27,000 faces to train and 3,000 to validate, from the TFRecords that came with Glow.

    No checksum of the archive is published; that every record is whole and their numbers are right
    is checked instead.
    """

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "celeba-tfr.tar, from https://openaipublic.azureedge.net/glow-demo/data/celeba-tfr.tar, or "
        "the folder celeba-tfr that is in it"
    )
    numbers = {"train": 27_000, "validation": 3_000}  # noqa: RUF012 - TFDS's way

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(256, 256, 3), encoding_format="png")
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict({"image": image}),
            homepage="https://github.com/openai/glow",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        root = Path(dl_manager.manual_dir) / "celeba-tfr"
        if not root.is_dir():
            root = Path(dl_manager.extract(f"{root}.tar")) / root.name
        return {split: self._generate_examples(root / split, split) for split in self.numbers}

    def _generate_examples(self, folder: Path, split: str) -> Iterator:
        import tensorflow as tf
        from tensorflow_datasets.proto import tf_example_pb2

        files = sorted(str(path) for path in folder.glob("*-r08-s-*.tfrecords"))
        index = -1
        for index, record in enumerate(tf.data.TFRecordDataset(files).as_numpy_iterator()):
            features = tf_example_pb2.Example.FromString(record).features.feature
            levels = np.frombuffer(features["data"].bytes_list.value[0], np.uint8)
            yield index, {"image": levels.reshape(256, 256, 3)}
        if index + 1 != self.numbers[split]:
            raise ValueError(
                f"{folder} has {index + 1} images in {len(files)} files; expected: "
                f"{self.numbers[split]}"
            )
