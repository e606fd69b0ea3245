"""What lossless compression costs with a trained model: bytes against the NELBO, and time.

Streams of several lengths are compressed by the model and decompressed again; every image has to
come back as it was. (Mode `compress` would code a stream by the simple codec of its opening where
that is shorter, as it is for crops that overlap, whose parts it has seen before.)
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from nvae_jax.compression.codec import compress, decompress
from nvae_jax.compression.report import nelbo_bits, other_codecs
from nvae_jax.compression.spent import Spent
from nvae_jax.data.loader import random_crop
from nvae_jax.data.sources.scikit import Photos
from nvae_jax.errors import require
from nvae_jax.evaluation.trained import TrainedModel
from nvae_jax.measuring.results import Rows, drawing, markdown, read_json
from nvae_jax.modes.compress import progress

ONCE = ("opening", "header", "checks", "word boundary")  # parts of a file that are not the model's


@dataclasses.dataclass(frozen=True)
class Record:
    """A stream of images that was compressed and decompressed again.

    Attributes:
      images: how many.
      batch_size: tiles that the network works on at a time.
      bytes: of the file.
      nelbo: of the images, by `evaluate`'s own pass with one draw per image, in bits.
      bits: of the file, by what they are.
      opening: images that the simple codec has coded.
      opening_nelbo: of these.
      encoding: seconds by what took them, see `Spent`: by the clock and of processors.
      decoding: likewise.
    """

    images: int
    batch_size: int
    bytes: int
    nelbo: float
    bits: dict[str, float]
    opening: int
    opening_nelbo: float
    encoding: dict[str, dict[str, float]]
    decoding: dict[str, dict[str, float]]

    @property
    def overhead(self) -> float:
        """How much longer the file is than the NELBO, relative to it."""
        return 8 * self.bytes / self.nelbo - 1

    @property
    def once(self) -> float:
        """The part of `overhead` that is due to the opening, the header and the checks."""
        return (sum(self.bits.get(name, 0) for name in ONCE) - self.opening_nelbo) / self.nelbo


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was measured with one model.

    Attributes:
      name: of the run's folder.
      dimensions: of an image.
      records: by length and batch size.
      other_codecs: bytes of the images of the longest stream, see `report.other_codecs`.
    """

    name: str
    dimensions: int
    records: list[Record]
    other_codecs: dict[str, dict[str, int]]


def crops(model: TrainedModel, splits: Sequence[str], number: int) -> list[np.ndarray]:
    """Random crops of the photographs of a run on `photos`: crop i is at a place drawn by i.

    The test split of `photos` has only the crops of a grid. These overlap, so there can be more of
    them, and a codec that looks for repetitions finds some.

    Args:
      model: of the run.
      splits: of whose parts of the photographs.
      number: how many.

    Raises:
      ConfigError: the run is on other data, or there is no such split.
    """
    data = model.run.data
    require("data.name", data.name, isinstance(data, Photos), "photos, for crops")
    whole = Photos(size=(427, 192)).open()  # as large as both parts allow
    parts: list[np.ndarray] = []
    for split in splits:
        require("--images", split, split in ("train", "test"), "train, test, for crops")
        parts += [getattr(whole, split)[0], getattr(whole, split)[1]]
    height, width, _ = model.config.image_shape
    return [
        random_crop(parts[i % len(parts)], height, width, np.random.default_rng(i))
        for i in range(number)
    ]


def measure_compression(
    model: TrainedModel,
    images: Sequence[np.ndarray],
    lengths: Sequence[int],
    batch_sizes: Sequence[int],
    compare: bool,
) -> Measured:
    """Compresses the first images in one stream, and back, for every length and batch size.

    Args:
      model: the model.
      images: (h, w, C) uint8 each, of the model's size.
      lengths: numbers of images.
      batch_sizes: see `codec.compress`.
      compare: whether other codecs compress them, too.

    Raises:
      ConfigError: there are fewer images than a length, or they are not the model's.
    """
    for length in lengths:
        require("--lengths", length, length <= len(images), f"up to {len(images)}, the images")
    images = images[: max(lengths)]
    nelbo = nelbo_bits(model, images)
    require("the images", images[0].shape, nelbo is not None, "images as the model has them")
    assert nelbo is not None  # which mypy does not know
    records = []
    for length, batch_size in itertools.product(lengths, batch_sizes):
        record = _record(model, images[:length], nelbo[:length], batch_size)
        model.log(f"{length:,} images, batch {batch_size}: {record.overhead:+.2%}")
        records.append(record)
    others = other_codecs(images) if compare else {}
    return Measured(model.workdir.path.name, images[0].size, records, others)


def _record(
    model: TrainedModel, images: Sequence[np.ndarray], nelbo: np.ndarray, batch_size: int
) -> Record:
    done = progress(model, "compressed")
    made = compress(model, images, batch_size=batch_size, by_model=True, done=done)
    decoding, came_back = Spent(), 0
    done = progress(model, "decompressed")
    for number, image in decompress(model, made.content, spent=decoding, done=done):
        if not np.array_equal(image, images[number]):
            raise RuntimeError(f"image {number} came back as another one")
        came_back += 1
    if came_back != len(images):
        raise RuntimeError(f"{came_back} of {len(images)} images came back")
    return Record(
        images=len(images),
        batch_size=batch_size,
        bytes=len(made.content),
        nelbo=float(nelbo.sum()),
        bits=dict(made.bits),
        opening=made.opening,
        opening_nelbo=float(nelbo[len(images) - made.opening :].sum()),
        encoding=dataclasses.asdict(made.spent),
        decoding=dataclasses.asdict(decoding),
    )


def read_measured(paths: Sequence[str]) -> list[Measured]:
    """What files hold that `--json` wrote.

    Raises:
      ConfigError: a file cannot be read, or holds something else.
    """

    def build(value: Any) -> Measured:
        if not value["records"]:
            raise ValueError("it has no records")
        return Measured(**value | {"records": [Record(**record) for record in value["records"]]})

    return [read_json("the file of figures", path, build) for path in paths]


def tables(measured: Sequence[Measured]) -> str:
    """All figures as tables in Markdown."""
    lines: list[str] = []
    for one in measured:
        longest = min(one.records, key=lambda record: (-record.images, record.batch_size))
        for rows in (_sizes(one), _speeds(one), _parts(longest), _others(one, longest)):
            lines += [*markdown(rows), ""] if rows else []
    return "\n".join(lines)


def _sizes(one: Measured) -> Rows:
    return [
        {
            "run": one.name,
            "images": f"{r.images:,}",
            "batch": str(r.batch_size),
            "bytes": f"{r.bytes:,}",
            "bits/dim": f"{8 * r.bytes / (r.images * one.dimensions):.4f}",
            "NELBO, bits/dim": f"{r.nelbo / (r.images * one.dimensions):.4f}",
            "file against NELBO": f"{r.overhead:+.2%}",
            "of which opening, header, checks": f"{r.once:+.2%}",
            "opening, images": str(r.opening),
        }
        for r in one.records
    ]


def _speeds(one: Measured) -> Rows:
    rows = []
    for r in one.records:
        for way, seconds in (("encoding", r.encoding), ("decoding", r.decoding)):
            total = seconds["total"]
            shares = [seconds[x]["processor"] / total["processor"] for x in ("network", "coder")]
            row = {"run": one.name, "way": way, "images": f"{r.images:,}"}
            row |= {"batch": str(r.batch_size), "images/s": f"{r.images / total['wall']:.3g}"}
            row |= {"images per processor second": f"{r.images / total['processor']:.3g}"}
            row |= {"network": f"{shares[0]:.0%}", "coder": f"{shares[1]:.0%}"}
            rows.append(row | {"rest": f"{1 - sum(shares):.0%}"})
    return rows


def _parts(record: Record) -> Rows:
    """Where the bits of a file are; the rows add up to it."""
    bits, total = record.bits, 8 * record.bytes
    rows: list[tuple[str, float]] = []
    for group in range(sum(name.startswith("latents ") for name in bits)):
        rows += [
            (f"latents of group {group}", bits[f"latents {group}"]),
            ("… gained back", bits[f"drawn {group}"]),
        ]
    rows += [(name, bits[name]) for name in ("pixels", "low bits", *ONCE) if bits.get(name)]
    rows.append(("**all**", sum(count for _, count in rows)))
    rows.append(("**the file**", total))
    return [
        {"part": name, "bits": f"{count:,.0f}", "of the file": f"{count / total:.2%}"}
        for name, count in rows
    ]


def _others(one: Measured, record: Record) -> Rows:
    def row(name: str, each: int | None, together: int | None) -> dict[str, str]:
        bits = [8 * (size or 0) / (record.images * one.dimensions) for size in (each, together)]
        each_text, together_text = (f"{x:.3f}" if x else "" for x in bits)
        return {"bits/dim": name, "a file per image": each_text, "all in one file": together_text}

    codecs = one.other_codecs.items()
    rows = [row(name, sizes["each"], sizes.get("one_picture")) for name, sizes in codecs]
    return [row("this model", None, record.bytes), *rows] if rows else []


def draw_overhead(measured: Sequence[Measured], path: str) -> None:
    """Draws how much longer files are than the NELBO, against the length of their stream."""
    with drawing(path, 4.5 * len(measured), 4) as figure:
        panels = figure.subplots(1, len(measured), squeeze=False)[0]
        for one, axes in zip(measured, panels, strict=True):
            for batch_size in sorted({record.batch_size for record in one.records}):
                records = [record for record in one.records if record.batch_size == batch_size]
                lengths = [record.images for record in records]
                total = [100 * record.overhead for record in records]
                once = [100 * record.once for record in records]
                (line,) = axes.plot(lengths, total, marker="o", label=f"batch of {batch_size}")
                axes.plot(lengths, once, linestyle=":", color=line.get_color())
            axes.axhline(0, color="grey", linewidth=0.8)
            axes.set(xscale="log", xlabel="images in the stream", title=one.name)
            axes.set_yscale("symlog", linthresh=1)
            axes.set(ylabel="file beyond the NELBO, %")
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.plot([], [], linestyle=":", color="black", label="opening, header, checks")
            axes.legend(fontsize="small")
