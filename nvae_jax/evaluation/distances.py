"""Distances between sets of images, by their features (N, D)."""

from __future__ import annotations

import numpy as np


def frechet_distance(
    mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray
) -> float:
    """The squared Fréchet distance of two Gaussians in float64: the FID (Heusel et al., 2017).

    |μa - μb|² + tr(Ca + Cb - 2 (Ca^½ Cb Ca^½)^½). By eigenvalues of symmetric matrices, which stay
    real where a covariance is singular.

    Means are (D,), covariances (D, D).
    """
    values, vectors = np.linalg.eigh(np.asarray(cov_a, np.float64))
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ np.asarray(cov_b, np.float64) @ root)
    cross = np.sqrt(np.maximum(product, 0)).sum()
    shift = np.asarray(mean_a, np.float64) - np.asarray(mean_b, np.float64)
    return float(shift @ shift + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def gaussian(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and unbiased covariance (D, D) of features (N, D), in float64."""
    features = features.astype(np.float64)
    return features.mean(0), np.cov(features, rowvar=False)


def kernel_distance(
    a: np.ndarray, b: np.ndarray, subset_size: int = 1000, subsets: int = 100, seed: int = 0
) -> tuple[float, float]:
    """The squared maximum mean discrepancy with a cubic kernel: KID (Bińkowski et al., 2018).

    Args:
      a: (N, D) features.
      b: (M, D) features.
      subset_size: of each estimate, cut to the smaller set.
      subsets: how many estimates.
      seed: of the subsets.

    Returns: mean of the unbiased estimates, and its standard error.
    """
    rng = np.random.default_rng(seed)
    size = min(subset_size, len(a), len(b))
    estimates = []
    for _ in range(subsets):
        x, y = (s[rng.choice(len(s), size, replace=False)].astype(np.float64) for s in (a, b))

        def kernel(p: np.ndarray, q: np.ndarray) -> np.ndarray:
            return (p @ q.T / p.shape[1] + 1) ** 3

        within = [kernel(s, s) for s in (x, y)]
        pairs = [(k.sum() - np.trace(k)) / (size * (size - 1)) for k in within]
        estimates.append(sum(pairs) - 2 * kernel(x, y).mean())
    return float(np.mean(estimates)), float(np.std(estimates) / np.sqrt(subsets))


def precision_recall(
    real: np.ndarray, fake: np.ndarray, nearest: int = 3, block: int = 1000
) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al., 2019).

    Precision is the share of samples that lie within the reach of a real image, the distance to its
    k-th nearest real one; recall is the same the other way round.

    Args:
      real: (N, D) features of real images.
      fake: (M, D) features of samples.
      nearest: k.
      block: rows at a time.
    """

    def squared(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x**2).sum(1)[:, None] - 2 * x @ y.T + (y**2).sum(1)

    def blocks(x: np.ndarray) -> list[np.ndarray]:
        return [x[i : i + block] for i in range(0, len(x), block)]

    def share(points: np.ndarray, others: np.ndarray) -> float:
        # The nearest of all to a point is itself.
        reach = [np.partition(squared(x, points), nearest)[:, nearest] for x in blocks(points)]
        radius = np.concatenate(reach)
        inside = [(squared(x, points) <= radius).any(1) for x in blocks(others)]
        return float(np.concatenate(inside).mean())

    real, fake = real.astype(np.float64), fake.astype(np.float64)
    return share(real, fake), share(fake, real)
