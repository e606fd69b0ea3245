"""Paths from image to image, through latents."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nvae_jax.evaluation.latents import Space, decode_latents
from nvae_jax.evaluation.trained import TrainedModel


def decode_paths(
    model: TrainedModel,
    first: Sequence[np.ndarray],
    last: Sequence[np.ndarray],
    moving: np.ndarray,
    steps: int,
    space: Space,
    batch_size: int,
) -> np.ndarray:
    """Images on paths between latents: `spherical` between noise, `linear` between values.

    Args:
      model: the model.
      first: where the paths start, (N, h, w, Z) per group, top-down.
      last: where they end.
      moving: (groups,) bool; the other groups stay as they are in `first`.
      steps: images per path, both ends included, at least 2.
      space: what the latents are.
      batch_size: images at a time on each device.

    Returns: (N, steps, h, w, C) in [0, 1].
    """
    path = spherical if space == "noise" else linear
    paths = [
        path(z, other if moves else z, steps)
        for z, other, moves in zip(first, last, moving, strict=True)
    ]
    flat = [z.reshape(-1, *z.shape[2:]) for z in paths]
    images = decode_latents(model, flat, space, batch_size=batch_size)
    return images.reshape(-1, steps, *images.shape[1:])


def spherical(a: np.ndarray, b: np.ndarray, steps: int) -> np.ndarray:
    """Spherical interpolation of standard-normal draws (White, 2016).

    Straight paths lead through vectors that are too short to be typical draws; this one turns from
    one direction into the other. Each row is a vector of its own.

    Args:
      a: (N, …), where the paths start.
      b: (N, …), where they end.
      steps: images per path, both ends included, at least 2.

    Returns: (N, steps, …), the ends exactly as given.
    """
    t = np.linspace(0, 1, steps)
    flat_a, flat_b = (x.reshape(len(x), 1, -1).astype(np.float64) for x in (a, b))
    lengths = np.linalg.norm(flat_a, axis=-1) * np.linalg.norm(flat_b, axis=-1)
    cosine = (flat_a * flat_b).sum(-1) / np.maximum(lengths, 1e-30)
    angle = np.arccos(np.clip(cosine, -1, 1))  # (N, 1)
    sine = np.sin(angle)
    straight = sine < 1e-6
    safe = np.where(straight, 1.0, sine)
    weight_a = np.where(straight, 1 - t, np.sin((1 - t) * angle) / safe)
    weight_b = np.where(straight, t, np.sin(t * angle) / safe)
    way = weight_a[..., None] * flat_a + weight_b[..., None] * flat_b
    return way.reshape(len(a), steps, *a.shape[1:]).astype(a.dtype)


def linear(a: np.ndarray, b: np.ndarray, steps: int) -> np.ndarray:
    """Straight interpolation: as `spherical`."""
    t = np.linspace(0, 1, steps, dtype=a.dtype).reshape(1, steps, *[1] * (a.ndim - 1))
    return (1 - t) * a[:, None] + t * b[:, None]
