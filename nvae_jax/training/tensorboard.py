"""A run's numbers and pictures for TensorBoard, whose files a run can do without."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from nvae_jax.errors import reason
from nvae_jax.workdir import Workdir


class TensorBoard:
    """Writes on the first process, as long as that works.

    Args:
      workdir: the run's folder.
    """

    def __init__(self, workdir: Workdir):
        self._workdir = workdir
        self._writer: Any = None
        if jax.process_index() == 0:
            from clu.metric_writers import SummaryWriter

            self._writer = SummaryWriter(str(workdir.path / "tensorboard"))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes numbers by name."""
        self._write(lambda writer: writer.write_scalars(step, values))
        self._write(lambda writer: writer.flush())

    def images(self, step: int, name: str, images: np.ndarray) -> None:
        """Writes images (N, H, W, C)."""
        self._write(lambda writer: writer.write_images(step, {name: images}))

    def close(self) -> None:
        """Writes what is left."""
        self._write(lambda writer: writer.close())

    def _write(self, write: Callable[[Any], object]) -> None:
        if self._writer is None:
            return
        try:
            write(self._writer)
        except Exception as error:  # TensorFlow's, of all kinds
            self._writer = None
            self._workdir.log(f"nothing more is written for TensorBoard: {reason(error)}")
