"""A compiled function over all examples of a split, or over all rows of arrays."""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from nvae_jax.data.sources import Source
from nvae_jax.image_spec import ImageSpec
from nvae_jax.parallel import shard_batch

_LOG_SECONDS = 10.0  # between two lines about progress

# From the number of a batch's first item, and the batch on the devices, to outputs (B, …) that
# every device has whole.
Compute = Callable[[int, Any], Any]


@dataclasses.dataclass(frozen=True)
class Progress:
    """Lines about the progress of long work.

    Attributes:
      log: what prints them.
      what: what the items are, such as "images scored".
      done: items that were finished before.
    """

    log: Callable[[str], None]
    what: str
    done: int = 0


def over_split(
    mesh: Mesh,
    compute: Compute,
    source: Source,
    index: np.ndarray,
    batch_size: int,
    progress: Progress | None = None,
) -> Iterator[tuple[int, Any]]:
    """Runs a compiled function over examples of a split.

    Args:
      mesh: the devices.
      compute: its batches are those of `eval_batches`.
      source: the split.
      index: (N,) positions of the examples in the split.
      batch_size: examples per batch over all devices. The last batch is filled up, so that one
        program computes all of them.
      progress: where to say how far the work is; None: nowhere.

    Yields: the place in `index` of a batch's first example, and the batch's outputs without the
      filling, as NumPy arrays.
    """
    from nvae_jax.data.loader import eval_batches

    if not len(index):
        return iter(())
    processes = jax.process_index(), jax.process_count()
    batches = eval_batches(source, batch_size, *processes, index=np.asarray(index))
    return _run(mesh, compute, batches, len(index), batch_size, progress)


def over_arrays(
    mesh: Mesh,
    compute: Compute,
    arrays: Any,
    batch_size: int,
    progress: Progress | None = None,
) -> Iterator[tuple[int, Any]]:
    """Runs a compiled function over the rows of a tree of NumPy arrays (N, …); see `over_split`."""
    number = len(jax.tree.leaves(arrays)[0])
    share = batch_size // jax.process_count()
    place = jax.process_index() * share + np.arange(share)

    def batch_from(first: int) -> Any:
        index = np.minimum(first + place, number - 1)
        return jax.tree.map(lambda x: np.asarray(x)[index], arrays)

    batches = map(batch_from, range(0, number, batch_size))
    return _run(mesh, compute, batches, number, batch_size, progress)


def on_pixels(image: ImageSpec, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of pixels as one of the batches of `eval_batches`.

    Args:
      image: what the images are; it makes pixels of levels.
      function: `(variables, x, index, *constants)`, with x (B, H, W, C) in [0, 1].

    Returns: `(variables, batch, *constants)`, to be compiled.
    """

    def on_batch(variables: Any, batch: Any, *constants: Any) -> Any:
        x = image.evaluation_pixels(batch["image"], batch["index"])
        return function(variables, x, batch["index"], *constants)

    return on_batch


def _run(
    mesh: Mesh,
    compute: Compute,
    batches: Iterable[Any],
    number: int,
    batch_size: int,
    progress: Progress | None,
) -> Iterator[tuple[int, Any]]:
    """Yields the outputs of a batch while the devices work on the next one."""
    clock = _Clock(number, progress)
    previous: tuple[int, Any] | None = None
    for step, batch in enumerate(batches):
        running = step * batch_size, compute(step * batch_size, shard_batch(mesh, batch))
        if previous is not None:
            yield _finished(*previous, number, batch_size, clock)
        previous = running
    if previous is not None:
        yield _finished(*previous, number, batch_size, clock)


def _finished(
    first: int, outputs: Any, number: int, batch_size: int, clock: _Clock
) -> tuple[int, Any]:
    count = min(batch_size, number - first)
    arrays = jax.tree.map(lambda x: np.asarray(x)[:count], outputs)
    clock.show(first + count)
    return first, arrays


class _Clock:
    """Says from time to time how far the work is, and how much time is left."""

    def __init__(self, number: int, progress: Progress | None):
        self._number, self._progress = number, progress
        self._first: int | None = None
        self._started = self._shown = time.monotonic()

    def show(self, done: int) -> None:
        now = time.monotonic()
        if self._first is None:  # the first batch was compiled
            self._first, self._started = done, now
        elif self._progress and now - self._shown > _LOG_SECONDS and done < self._number:
            self._shown, rate = now, (done - self._first) / (now - self._started)
            left = datetime.timedelta(seconds=round((self._number - done) / rate))
            before = self._progress.done
            self._progress.log(
                f"{before + done:,}/{before + self._number:,} {self._progress.what}, "
                f"{rate:.3g}/s, {left} left"
            )
