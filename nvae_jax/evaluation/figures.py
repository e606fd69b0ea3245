"""Figures of matplotlib as arrays of pixels."""

from __future__ import annotations

from typing import Any

import numpy as np


def two_panels() -> tuple[Any, Any]:
    """A figure of two panels side by side, and the panels."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(11, 4), layout="constrained")
    return figure, figure.subplots(1, 2)


def pixels(figure: Any) -> np.ndarray:
    """(H, W, 3) in [0, 1]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3] / 255.0
