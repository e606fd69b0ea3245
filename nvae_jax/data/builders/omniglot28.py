"""OMNIGLOT at 28×28, as importance-weighted autoencoders introduced it."""

import hashlib
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

# Published by others who use the file; its repository states none.
MD5 = "21ecaf34373511aa7691cf2e0802aa3d"


class Omniglot28(tfds.core.GeneratorBasedBuilder):
    """24,345 characters to train and 8,070 to test, 28×28 grey levels, from `chardata.mat`."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "chardata.mat, from "
        "https://github.com/yburda/iwae/raw/master/datasets/OMNIGLOT/chardata.mat"
    )
    md5: str | None = MD5

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(28, 28, 1), encoding_format="png")
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict({"image": image}),
            homepage="https://github.com/yburda/iwae",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        from scipy.io import loadmat

        path = dl_manager.manual_dir / "chardata.mat"
        content = path.read_bytes()
        if self.md5 and hashlib.md5(content).hexdigest() != self.md5:
            raise ValueError(f"{path} is not the file with MD5 {self.md5}; fetch it again")
        data = loadmat(path)
        return {"train": _examples(data["data"]), "test": _examples(data["testdata"])}

    def _generate_examples(self) -> Iterator:
        raise NotImplementedError  # the splits have their generators already


def _examples(columns: np.ndarray) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Examples from means (784, N) in [0, 1]: a column is an image, column by column."""
    images = (columns.T * 255).astype(np.uint8).reshape(-1, 28, 28, 1).swapaxes(1, 2)
    for index, image in enumerate(images):
        yield index, {"image": image}
