"""NumPy's archives of arrays (.npz), of unknown origin."""

import math
import zipfile
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np

from nvae_jax.errors import require
from nvae_jax.memory import machine_memory

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_npz(file: BinaryIO) -> Mapping[str, np.ndarray]:
    """The arrays of an archive, which are read as they are needed; never a pickled object.

    Raises:
      ConfigError: unpacked, they would take more than half of the machine's memory.
      ValueError, zipfile.BadZipFile: it is damaged, or an array is larger than what is in the file.
    """
    if file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
        raise ValueError("it is an .npy file")
    with zipfile.ZipFile(file) as archive:
        size, most = sum(entry.file_size for entry in archive.infolist()), machine_memory() / 2
        require("the unpacked size in bytes", size, size <= most, f"at most {most:.3g} here")
        for entry in archive.infolist():
            with archive.open(entry) as member:
                version = np.lib.format.read_magic(member)
                shape, _, dtype = _HEADERS[version](member)
            if math.prod(shape) * dtype.itemsize > entry.file_size:
                raise ValueError(f"{entry.filename} lacks a part of its {shape} numbers")
    file.seek(0)
    return np.load(file)
