"""FFHQ at 256×256, from its images of 1024×1024."""

import concurrent.futures
import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from nvae_jax.data.builders.conversion import to_png
from nvae_jax.data.images import stretch

DESCRIPTION = "ffhq-dataset-v2.json"
DESCRIPTION_MD5 = "425ae20f06a4da1d4dc0f46d40ba5fd6"


class Ffhq256(tfds.core.GeneratorBasedBuilder):
    """63,000 faces to train and 7,000 to validate, resized bilinearly (Pillow).

    Beside the images may lie `ffhq-dataset-v2.json`, which has the MD5 of every one; then they are
    checked. Images that are converted are kept until the dataset is complete, so that an
    interruption costs little.
    """

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "ffhq/, a folder (or a link to one) with the 70,000 PNG files 00000.png to 69999.png of "
        "images1024x1024 in it or in its sub-folders, from "
        "https://github.com/NVlabs/ffhq-dataset, and, to have them checked, ffhq-dataset-v2.json"
    )
    number, number_to_train = 70_000, 63_000

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(256, 256, 3), encoding_format="png")
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict({"image": image, "id": tfds.features.Text()}),
            homepage="https://github.com/NVlabs/ffhq-dataset",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        root = Path(dl_manager.manual_dir) / "ffhq"
        found = {path.stem: path for path in root.rglob("*.png")}
        names = [f"{i:05d}" for i in range(self.number)]
        missing = [name for name in names if name not in found]
        if missing:
            raise ValueError(
                f"{root} lacks {len(missing)} of {self.number} images, {missing[0]}.png among them"
            )
        sums = _read_sums(root / DESCRIPTION)
        # RandomState's streams are frozen for good (NEP 19), so the split never moves.
        order = np.random.RandomState(0).permutation(self.number)
        train, validation = (
            [found[names[i]] for i in part] for part in np.split(order, [self.number_to_train])
        )
        kept = Path(dl_manager.download_dir) / "ffhq256.converted"
        return {
            "train": self._generate_examples(train, sums, kept),
            "validation": self._generate_examples(validation, sums, kept),
        }

    def _generate_examples(
        self, paths: Sequence[Path], sums: dict[str, str], kept: Path
    ) -> Iterator:
        kept.mkdir(parents=True, exist_ok=True)
        convert = functools.partial(_convert, sums=sums, kept=kept)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            for path, png in zip(paths, pool.map(convert, paths), strict=True):
                yield path.stem, {"image": str(png), "id": path.stem}


def _convert(path: Path, sums: dict[str, str], kept: Path) -> Path:
    """The file of a converted image, made unless it is there."""
    png = kept / path.name
    if not png.exists():
        if sums and hashlib.md5(path.read_bytes()).hexdigest() != sums[path.name]:
            raise ValueError(f"{path} has not the MD5 that {DESCRIPTION} says; fetch it again")
        to_png(path, png, functools.partial(stretch, height=256, width=256))
    return png


def _read_sums(path: Path) -> dict[str, str]:
    """MD5 sums of the images by file name; none without the description."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    if hashlib.md5(content).hexdigest() != DESCRIPTION_MD5:
        raise ValueError(f"{path} has not the MD5 {DESCRIPTION_MD5}; fetch it again")
    images = [entry["image"] for entry in json.loads(content).values()]
    return {image["file_path"].rpartition("/")[2]: image["file_md5"] for image in images}
