"""A class beside the style: the sum over classes against enumeration, and matching to labels."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp
from scipy.stats import norm

from nvae_jax.evaluation.classes import matched_accuracy
from nvae_jax.model.mixture import class_kl, class_kl_parts, decode_classes, expected

CLASSES = 3
WEIGHTS = np.array([[1.0, -0.5], [0.3, 2.0], [-1.0, 0.4]])  # (K, L): x ~ N(w_y · z, 1)
RNG = np.random.default_rng(0)
Z = RNG.normal(size=(4, 2))
X = RNG.normal(size=4)
LOGITS = RNG.normal(size=(4, CLASSES))
STYLE_KL = RNG.uniform(size=4)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def decode(z, y):
    assert z.shape == (12, 2)
    assert y.shape == (12, CLASSES)
    return {"mean": (z * (y @ WEIGHTS)).sum(1), "class": y}


def terms(class_logits):
    decoded = decode_classes(decode, jnp.asarray(Z), CLASSES)
    log_likelihoods = jax.scipy.stats.norm.logpdf(X[:, None], decoded["mean"])
    kl = class_kl(class_logits)
    nelbo = STYLE_KL + kl - expected(class_logits, log_likelihoods)
    return types.SimpleNamespace(nelbo=nelbo, class_kl=kl)


def test_every_style_is_decoded_as_every_class():
    decoded = decode_classes(decode, jnp.asarray(Z), CLASSES)
    np.testing.assert_allclose(decoded["mean"], Z @ WEIGHTS.T, rtol=1e-12)
    np.testing.assert_array_equal(decoded["class"], np.broadcast_to(np.eye(3), (4, 3, 3)))


def test_the_bound_by_enumeration():
    actual = terms(jnp.asarray(LOGITS))
    for i in range(4):
        log_q = log_softmax(LOGITS[i])
        total = 0.0
        for y in range(CLASSES):
            log_joint = np.log(1 / CLASSES) + norm.logpdf(X[i], Z[i] @ WEIGHTS[y])
            total += np.exp(log_q[y]) * (log_q[y] - log_joint)
        np.testing.assert_allclose(actual.nelbo[i], total + STYLE_KL[i], rtol=1e-12)
        entropy = -(np.exp(log_q) * log_q).sum()
        np.testing.assert_allclose(actual.class_kl[i], np.log(CLASSES) - entropy, rtol=1e-12)


def test_the_best_class_posterior_makes_the_bound_exact_in_the_class():
    # With q(y | x) = p(y | x, z), what is left is −log Σ_y p(y) p(x | y, z) + KL of the style.
    log_joint = norm.logpdf(X[:, None], Z @ WEIGHTS.T) - np.log(CLASSES)
    exact = -logsumexp(log_joint, axis=1) + STYLE_KL
    np.testing.assert_allclose(terms(jnp.asarray(log_joint)).nelbo, exact, rtol=1e-12)
    assert (terms(jnp.asarray(LOGITS)).nelbo > exact).all()
    slope = jax.grad(lambda logits: terms(logits).nelbo.sum())(jnp.asarray(log_joint))
    np.testing.assert_allclose(slope, 0, atol=1e-12)


def test_the_parts_of_the_class_kl():
    information, imbalance = class_kl_parts(jnp.asarray(LOGITS))
    np.testing.assert_allclose(
        information + imbalance, terms(jnp.asarray(LOGITS)).class_kl.mean(), rtol=1e-12
    )
    sure = 1000.0 * jnp.eye(CLASSES)
    np.testing.assert_allclose(class_kl_parts(sure), [np.log(3), 0], atol=1e-12)
    one_class = jnp.tile(sure[:1], (5, 1))
    np.testing.assert_allclose(class_kl_parts(one_class), [0, np.log(3)], atol=1e-12)
    undecided = jnp.zeros((5, CLASSES))
    np.testing.assert_allclose(class_kl_parts(undecided), [0, 0], atol=1e-12)


def test_accuracy_after_the_best_matching():
    labels = np.array([3, 3, 3, 5, 5, 9])
    # A permutation is no error.
    assert matched_accuracy(np.array([2, 2, 2, 0, 0, 1]), labels) == (1.0, {2: 3, 0: 5, 1: 9})
    # Class 0's most frequent label is 7, but class 1 has no other.
    labels = np.array([7, 7, 7, 8, 8, 7, 7])
    assert matched_accuracy(np.array([0, 0, 0, 0, 0, 1, 1]), labels) == (4 / 7, {0: 8, 1: 7})
    # More classes than labels, and fewer.
    assert matched_accuracy(np.array([0, 1, 2, 2]), np.zeros(4, int)) == (0.5, {2: 0})
    assert matched_accuracy(np.zeros(4, int), np.array([4, 1, 2, 2])) == (0.5, {0: 2})
