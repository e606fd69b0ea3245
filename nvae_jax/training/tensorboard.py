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
        self._works = jax.process_index() == 0
        self._writer: Any = None  # until there is something to write: TensorFlow is slow to import

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes numbers by name."""
        self._write(lambda writer: writer.write_scalars(step, values))
        self._write(lambda writer: writer.flush())

    def images(self, step: int, name: str, images: np.ndarray) -> None:
        """Writes images (N, H, W, C)."""
        self._write(lambda writer: writer.write_images(step, {name: images}))

    def close(self) -> None:
        """Writes what is left."""
        if self._writer is not None:
            self._write(lambda writer: writer.close())

    def _write(self, write: Callable[[Any], object]) -> None:
        if not self._works:
            return
        try:
            if self._writer is None:
                from clu.metric_writers import SummaryWriter

                self._writer = SummaryWriter(str(self._workdir.path / "tensorboard"))
            write(self._writer)
        except ImportError as error:
            self._works = False
            self._workdir.log(f"without clu and TensorFlow, no TensorBoard files: {reason(error)}")
        except Exception as error:  # TensorFlow's, of all kinds
            self._works = False
            self._workdir.log(f"nothing more is written for TensorBoard: {reason(error)}")
