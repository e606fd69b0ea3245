"""What modes write into a run's folder, and what they say about it."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from nvae_jax.evaluation.trained import TrainedModel
from nvae_jax.workdir.pictures import png


def provenance(model: TrainedModel, options: Any) -> dict[str, Any]:
    """What a result was made with: the options of its mode and the checkpoint's step."""
    return dataclasses.asdict(options) | {"step": model.step}


def save_images(
    model: TrainedModel, name: str, images: np.ndarray, columns: int | None, what: str
) -> str:
    """Writes images (N, h, w, C) in [0, 1] as the grid `<name>.png`, says so, returns its path."""
    target = model.workdir.write(f"{name}.png", png(images, columns))
    model.workdir.log(f"{what}: {target}")
    return os.fspath(target)


def save_rows(model: TrainedModel, name: str, rows: np.ndarray, what: str) -> str:
    """Writes images (rows, columns, h, w, C) as a grid, see `save_images`."""
    return save_images(model, name, rows.reshape(-1, *rows.shape[2:]), rows.shape[1], what)


def save_arrays(
    model: TrainedModel, name: str, options: Any, arrays: Mapping[str, np.ndarray], what: str
) -> str:
    """Writes arrays and their provenance as `<name>.npz`, says so, returns its path."""
    file = io.BytesIO()
    made_with = np.asarray(json.dumps(provenance(model, options)))
    np.savez(file, **{"provenance": made_with, **arrays})  # type: ignore[arg-type]
    target = model.workdir.write(f"{name}.npz", file.getvalue())
    model.workdir.log(f"{what}: {target}")
    return os.fspath(target)


def save_report(model: TrainedModel, name: str, report: Mapping[str, Any]) -> str:
    """Writes an object with a JSON form as `<name>.json`; returns its path."""
    target = model.workdir.write(f"{name}.json", json.dumps(report, indent=1).encode())
    return os.fspath(target)
