"""The mode `compress`: images in a file, without loss, at the model's own likelihood."""

from __future__ import annotations

import dataclasses
import os
import time
from typing import Any

from etils import epath

from nvae_jax.command_line import validate
from nvae_jax.compression.codec import compress as compress_images
from nvae_jax.compression.images import named_images
from nvae_jax.compression.report import lines, nelbo_bits, other_codecs, report
from nvae_jax.errors import require
from nvae_jax.evaluation.trained import TrainedModel
from nvae_jax.modes.results import provenance, save_report
from nvae_jax.workdir import files

_LOG_SECONDS = 10.0  # between two lines about progress


@dataclasses.dataclass(frozen=True)
class CompressOptions:
    """Options of `compress`.

    Attributes:
      output: the file to write, a new one
      images: test, train:0-99, image files or folders, separated by commas
      batch_size: images or tiles at a time; more are faster, but a stream begins with the latents
        of so many
      stream_images: images that are coded as one; a part is decoded without the other parts; all by
        default
      compare: whether to report the NELBO and the sizes by other codecs as well
      seed: seeds the NELBO's draws
    """

    output: str
    images: tuple[str, ...] = ("test",)
    batch_size: int = 1
    stream_images: int | None = None
    compare: bool = True
    seed: int = 0

    def __post_init__(self):
        validate(self, "batch_size", "stream_images")


def compress(model: TrainedModel, options: CompressOptions) -> dict[str, Any]:
    """Compresses images to the file `output`, and says what it costs.

    Writes `compress/<name of the file>.json`, too, with the report.

    Args:
      model: the model.
      options: which images, and how.

    Returns: the report, an object with a JSON form.

    Raises:
      ConfigError: there are no such images, the model cannot code them, or the output is there.
    """
    output = epath.Path(os.path.expanduser(options.output))
    require("output", options.output, not output.exists(), "a new file")
    images, names = named_images(model, options.images)
    made = compress_images(
        model,
        images,
        names,
        options.batch_size,
        options.stream_images,
        progress(model, "compressed"),
    )
    files.write(output, made.content)
    result = {"provenance": provenance(model, options)} | report(model, images, made)
    if options.compare:
        nelbo = nelbo_bits(model, images, options.seed)
        result["nelbo_bits"] = None if nelbo is None else float(nelbo.sum())
        result["other_codecs"] = other_codecs(images)
    save_report(model, f"compress/{output.name}", result)
    for line in lines(result):
        model.workdir.log(line)
    model.workdir.log(f"{len(images):,} images: {os.fspath(output)}")
    return result


def progress(model: TrainedModel, what: str) -> Any:
    """A function that logs, from time to time, how many tiles of how many are done."""
    shown = started = time.monotonic()

    def done(number: int, total: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown > _LOG_SECONDS and number < total:
            shown = now
            rate = number / (now - started)
            model.log(f"{number:,}/{total:,} tiles {what}, {rate:.3g}/s")

    return done
