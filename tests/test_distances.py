"""Distances between sets of features, against closed forms and definitions."""

import numpy as np
import pytest
import scipy.linalg

from nvae_jax.evaluation.distances import (
    frechet_distance,
    gaussian,
    kernel_distance,
    precision_recall,
)

RNG = np.random.default_rng(0)


def random_covariance(dimensions, rank):
    factor = RNG.normal(size=(dimensions, rank))
    return factor @ factor.T / rank


def test_frechet_distance_of_independent_gaussians():
    mean_a, mean_b = RNG.normal(size=(2, 6))
    var_a, var_b = RNG.uniform(0.1, 3, (2, 6))
    expected = ((mean_a - mean_b) ** 2 + (np.sqrt(var_a) - np.sqrt(var_b)) ** 2).sum()
    actual = frechet_distance(mean_a, np.diag(var_a), mean_b, np.diag(var_b))
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_frechet_distance_of_a_rotated_and_scaled_gaussian():
    # For Ca = s² Cb the distance is |μa - μb|² + (s - 1)² tr Cb.
    cov = random_covariance(8, 20)
    shift = RNG.normal(size=8)
    actual = frechet_distance(np.zeros(8), 9 * cov, shift, cov)
    np.testing.assert_allclose(actual, shift @ shift + 4 * np.trace(cov), rtol=1e-12)


@pytest.mark.parametrize("rank", [3, 30])
def test_frechet_distance_by_the_matrix_root(rank):
    a, b = random_covariance(10, rank), random_covariance(10, 30)
    cross = np.trace(scipy.linalg.sqrtm(a @ b).real)
    expected = np.trace(a) + np.trace(b) - 2 * cross
    actual = frechet_distance(np.zeros(10), a, np.zeros(10), b)
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    assert abs(frechet_distance(np.ones(10), a, np.ones(10), a)) < 1e-6


def test_gaussian_of_features():
    features = RNG.normal(size=(50, 3)).astype(np.float32)
    mean, cov = gaussian(features)
    centred = features.astype(np.float64) - mean
    np.testing.assert_allclose(cov, centred.T @ centred / 49)
    assert cov.dtype == np.float64


def test_kernel_distance_by_its_definition():
    x, y = RNG.normal(size=(2, 6, 4))
    y += 1

    def kernel(p, q):
        return (p @ q / 4 + 1) ** 3

    pairs = [(i, j) for i in range(6) for j in range(6)]
    same = [kernel(s[i], s[j]) for s in (x, y) for i, j in pairs if i != j]
    cross = [kernel(x[i], y[j]) for i, j in pairs]
    expected = sum(same) / 30 - 2 * np.mean(cross)
    value, error = kernel_distance(x, y, subsets=3)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    assert error < 1e-12  # every subset is the whole set
    value, error = kernel_distance(RNG.normal(size=(400, 4)), RNG.normal(size=(500, 4)), 100, 50)
    assert abs(value) < 4 * error


def test_precision_and_recall_of_sets_that_are_known():
    real = np.arange(10.0)[:, None]  # reach of the inner ones with k = 1: 1
    fake = np.array([[0.5], [3.2], [30.0], [31.0]])
    precision, recall = precision_recall(real, fake, nearest=1, block=3)
    assert precision == 0.5
    # The fakes' reaches: 2.7, 2.7, 1, 1: they cover 0…5 of the real ones.
    assert recall == 0.6
    assert precision_recall(real, real) == (1.0, 1.0)
