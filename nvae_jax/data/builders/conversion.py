"""What builders share that convert images."""

import os
import tempfile
from pathlib import Path

from PIL import Image

from nvae_jax.data.images import Geometry, ImageReader


def to_png(source: Path, target: Path, geometry: Geometry) -> None:
    """Writes an RGB image as PNG after `geometry`; whole or not at all.

    Raises:
      ValueError: the source cannot be read.
      OSError: the target cannot be written.
    """
    try:
        image = Image.fromarray(ImageReader(3, geometry)(source))
    except Exception as error:
        raise ValueError(f"{source} cannot be read: {error}") from error
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file:
        try:
            image.save(file, "png")
        except OSError:
            os.unlink(file.name)
            raise
    os.replace(file.name, target)
