"""Classes that formed without labels, compared with the labels."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment


def matched_accuracy(classes: np.ndarray, labels: np.ndarray) -> tuple[float, dict[int, int]]:
    """The share of images whose class is its label's, where classes are given labels at best.

    Every class gets at most one label and every label at most one class (the Hungarian method), so
    with more classes than labels the images of the classes left over are wrong.

    Args:
      classes: (N,) integers.
      labels: (N,) integers.

    Returns: the accuracy, and the label of each class that has one.
    """
    found, class_index = np.unique(classes, return_inverse=True)
    known, label_index = np.unique(labels, return_inverse=True)
    counts = np.zeros((len(found), len(known)), int)
    np.add.at(counts, (class_index, label_index), 1)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    label_of = {int(found[i]): int(known[j]) for i, j in zip(rows, columns, strict=True)}
    return float(counts[rows, columns].sum() / len(classes)), label_of
