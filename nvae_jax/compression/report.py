"""What compressed images cost: part by part, and beside other codecs."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nvae_jax.compression.codec import Compressed
from nvae_jax.compression.images import PILLOW
from nvae_jax.evaluation.likelihood import make_image_likelihood
from nvae_jax.evaluation.trained import TrainedModel

_LARGEST_PICTURE = 16383  # pixels of a side, of WebP


def report(model: TrainedModel, images: Sequence[np.ndarray], made: Compressed) -> dict[str, Any]:
    """What a file's bits are, as an object with a JSON form.

    Args:
      model: the model.
      images: (H, W, C) uint8 each.
      made: of them.
    """
    dimensions = sum(image.size for image in images)
    total = 8 * len(made.content)
    groups = [
        {
            "group": g,
            "latents": made.bits[f"latents {g}"],
            "gained_back": made.bits[f"drawn {g}"],
            "sum": made.bits[f"latents {g}"] + made.bits[f"drawn {g}"],
        }
        for g in range(model.config.total_groups)
    ]
    names = ("pixels", "low bits", "opening", "word boundary", "checks", "header")
    parts = {name: made.bits[name] for name in names}
    return {
        "images": len(images),
        "tiles": made.tiles,
        "tiles_of_openings": made.opening,
        "bytes": len(made.content),
        "bits_per_dim": total / dimensions,
        "groups": groups,
        "parts": parts,
        "sum": sum(group["sum"] for group in groups) + sum(parts.values()),
        "seconds": made.spent.total.wall,
        "network_seconds": made.spent.network.wall,
        "coder_seconds": made.spent.coder.wall,
        "processor_seconds": made.spent.total.processor,
    }


def nelbo_bits(
    model: TrainedModel, images: Sequence[np.ndarray], seed: int = 0
) -> np.ndarray | None:
    """The NELBO of each image by `evaluate`'s own pass, with one draw per image, in bits; (N,).

    None where the images are not those of the model: of another size, or of more bits.
    """
    spec, config = model.config.image, model.config
    bits = 1 if spec.binarize else spec.num_bits
    if any(image.shape != spec.inner_shape for image in images):
        return None
    levels = np.stack(images)
    if spec.binarize:
        levels = levels >> 7
    elif (levels & ((1 << 8 - bits) - 1)).any():
        return None
    else:
        levels = spec.reduce_bits(levels)
    x = spec.with_border(levels.astype(np.float32) / (2**bits - 1))
    likelihood = make_image_likelihood(config, (1,), 1, seed)
    arrays = {"x": x, "index": np.arange(len(x), dtype=np.uint32)}

    def nelbo(variables: Any, batch: Any) -> Any:
        return likelihood(variables, batch["x"], batch["index"])["sampled_nelbo"]

    nats = model.map(nelbo, arrays, 16, "images scored")
    return np.asarray(nats, np.float64) / math.log(2)


def other_codecs(images: Sequence[np.ndarray]) -> dict[str, dict[str, int]]:
    """Bytes by codec: every image in a file, and, where they are of one size, all in one picture.

    JPEG XL is among them where `imagecodecs` is installed.
    """
    binary = all(np.isin(image, (0, 255)).all() for image in images)
    codecs: dict[str, Callable[[np.ndarray], int]] = {
        "PNG": lambda image: _by_pillow(image, binary, format="PNG", optimize=True),
    }
    if images[0].shape[-1] != 2:
        codecs["WebP"] = lambda image: _by_pillow(
            image, False, format="WEBP", lossless=True, quality=100, method=6, exact=True
        )
    try:
        import imagecodecs
    except ImportError:
        pass
    else:
        codecs["JPEG XL"] = lambda image: len(
            imagecodecs.jpegxl_encode(
                np.squeeze(image, 2) if image.shape[2] == 1 else image, lossless=True, effort=9
            )
        )
    sizes = {name: {"each": sum(map(size, images))} for name, size in codecs.items()}
    picture = _one_picture(images)
    if picture is not None:
        for name, size in codecs.items():
            sizes[name]["one_picture"] = size(picture)
    return sizes


def lines(result: dict[str, Any]) -> list[str]:
    """The report as a table, for people."""
    total = result["sum"]

    def row(name: str, bits: float) -> str:
        return f"{name:>24}: {bits:>14,.0f} bits, {bits / total:>7.2%}"

    rows = [
        f"{result['images']:,} images in {result['bytes']:,} bytes, "
        f"{result['bits_per_dim']:.4f} bits/dim"
    ]
    for group in result["groups"]:
        rows.append(row(f"latents of group {group['group']}", group["latents"]))
        rows.append(row("gained back", group["gained_back"]))
    rows += [row(name, bits) for name, bits in result["parts"].items()]
    rows.append(row("the file", total))
    if result.get("nelbo_bits") is not None:
        over = 8 * result["bytes"] / result["nelbo_bits"] - 1
        rows.append(
            f"{'the NELBO':>24}: {result['nelbo_bits']:>14,.0f} bits; the file: {over:+.2%}"
        )
    for name, sizes in result.get("other_codecs", {}).items():
        kinds = ", ".join(f"{kind} {size:,} bytes" for kind, size in sizes.items())
        rows.append(f"{name:>24}: {kinds}")
    rate = result["tiles"] / result["seconds"]
    network, coder = (
        result[f"{part}_seconds"] / result["seconds"] for part in ("network", "coder")
    )
    rows.append(f"{rate:.3g} tiles/s; the network takes {network:.0%}, the coder {coder:.0%}")
    return rows


def _by_pillow(image: np.ndarray, binary: bool, **options: Any) -> int:
    from PIL import Image

    channels = image.shape[-1]
    pixels = image[..., 0] if channels == 1 else image
    picture = (
        Image.fromarray(pixels, PILLOW[channels]) if channels == 2 else Image.fromarray(pixels)
    )
    if binary and channels == 1:
        picture = picture.convert("1")
    file = io.BytesIO()
    picture.save(file, **options)
    return len(file.getvalue())


def _one_picture(images: Sequence[np.ndarray]) -> np.ndarray | None:
    height, width, channels = images[0].shape
    columns = math.isqrt(len(images))
    rows = len(images) // columns
    fits = max(columns * width, rows * height) <= _LARGEST_PICTURE
    exact = rows * columns == len(images)
    if not fits or not exact or any(image.shape != images[0].shape for image in images):
        while columns > 1 and len(images) % columns:
            columns -= 1
        rows = len(images) // columns
        fits = max(columns * width, rows * height) <= _LARGEST_PICTURE
        if not fits or any(image.shape != images[0].shape for image in images):
            return None
    table = np.stack(images).reshape(rows, columns, height, width, channels)
    return table.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)
