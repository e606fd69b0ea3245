"""LSUN's scenes, as TFDS's own builder has them, which needs a package that is no longer made."""

from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from nvae_jax.data.lsun import NUM_IMAGES

URL = "http://dl.yf.io/lsun/scenes/{category}_{split}_lmdb.zip"


class LsunScenes(tfds.core.GeneratorBasedBuilder):
    """A category of scenes, the files as they were released: the shorter side has 256 pixels."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012 - TFDS's way
        tfds.core.BuilderConfig(name=category) for category in NUM_IMAGES
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(encoding_format="jpeg")
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict({"image": image, "id": tfds.features.Text()}),
            homepage="https://www.yf.io/p/lsun",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        category = self.builder_config.name
        urls = {
            split: URL.format(category=category, split=short)
            for split, short in (("train", "train"), ("validation", "val"))
        }
        folders = dl_manager.download_and_extract(urls)
        return {split: self._generate_examples(Path(folders[split])) for split in urls}

    def _generate_examples(self, folder: Path) -> Iterator:
        import lmdb

        (database,) = folder.rglob("data.mdb")
        with (
            lmdb.open(
                str(database.parent), readonly=True, lock=False, readahead=True
            ) as environment,
            environment.begin() as transaction,
        ):
            for key, value in transaction.cursor():
                yield key.decode(), {"image": value, "id": key.decode()}
