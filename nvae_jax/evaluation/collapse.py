"""What codes say of their images, and how far all codes together are from the prior N(0, I)."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from nvae_jax.evaluation.figures import pixels, two_panels
from nvae_jax.model.distributions import Normal
from nvae_jax.objectives.decomposed import kl_parts
from nvae_jax.objectives.mmd import SCALES, KernelName, squared_mmd

ACTIVE_VARIANCE = 0.01  # of a latent's posterior mean, above which it is active (Burda et al.)
MASSES = (0.5, 0.9, 0.99)  # of the prior, within the circles of a picture


def active_units(means: np.ndarray, threshold: float = ACTIVE_VARIANCE) -> np.ndarray:
    """Whether each latent's posterior mean varies from image to image (arXiv 1509.00519, §5.2).

    Args:
      means: (N, L) posterior means of images.
      threshold: of the variance over images, in the prior's units.

    Returns: (L,) bool.
    """
    return np.var(np.asarray(means, np.float64), axis=0, ddof=1) > threshold


def code_information(
    mean: np.ndarray,
    sigma: np.ndarray,
    z: np.ndarray,
    dataset_size: int | None = None,
    groups: Sequence[int] | None = None,
) -> dict[str, float]:
    """The mean KL of images' codes and its parts, in nats per image.

    With all images of a set, the mutual information is that of the code and of which image of the
    set it is (Hoffman & Johnson, "ELBO surgery", 2016): 0 where the posterior has collapsed, and
    log N at most, a bound that says how much this set can show. With `dataset_size`, the images
    are a random part of a larger set; see `kl_parts`. The cost goes with N² · L.

    Args:
      mean: (N, L) of q(z | x).
      sigma: (N, L) of q(z | x), above 0: a deterministic encoder's information has no bound.
      z: (N, L) a draw of each.
      dataset_size: of the larger set; by default these images are all.
      groups: as in `kl_parts`.

    Returns: `kl`, `mutual_information`, `mutual_information_bound`, `total_correlation`,
      `between_groups` and `within_groups`, which add up to it, and `dimension_wise`.
    """
    size = len(z) if dataset_size is None else dataset_size
    groups = None if groups is None else tuple(groups)
    posterior = Normal(jnp.asarray(mean), jnp.asarray(sigma))
    parts = _parts(posterior, jnp.asarray(z), size, groups)
    names = ("kl", "mutual_information", "total_correlation", "between_groups", "within_groups")
    means = {name: getattr(parts, name) for name in (*names, "dimension_wise")}
    values = {name: float(np.asarray(value, np.float64).mean()) for name, value in means.items()}
    return values | {"mutual_information_bound": math.log(size)}


_parts = jax.jit(functools.partial(kl_parts, block=16), static_argnums=(2, 3))


def prior_mmd(
    z: np.ndarray, kernel: KernelName = "imq", scales: Sequence[float] = SCALES, seed: int = 0
) -> float:
    """MMD² of codes and as many draws of the prior, unbiased: around 0 where they agree.

    Args:
      z: (N, L) a draw of every image's code.
      kernel: as in `squared_mmd`.
      scales: as in `squared_mmd`.
      seed: of the prior's draws.
    """
    prior = np.random.default_rng(seed).normal(size=z.shape).astype(z.dtype)
    return float(_squared_mmd(z, prior, kernel, tuple(scales)))


_squared_mmd = jax.jit(squared_mmd, static_argnums=(2, 3))


@dataclasses.dataclass(frozen=True)
class PrincipalPlane:
    """The plane in which codes vary most.

    points: (N, 2) codes in the plane, from the prior's mean; in it, the prior is N(0, I).
    axes: (L, 2) orthonormal directions of the plane, the wider one first.
    variances: (L,) of all principal components, falling; the prior's are 1.
    """

    points: np.ndarray
    axes: np.ndarray
    variances: np.ndarray


def principal_plane(z: np.ndarray) -> PrincipalPlane:
    """The two principal components of codes (N, L), L at least 2, in float64.

    An axis points to where its largest entry is positive.
    """
    z = np.asarray(z, np.float64)
    variances, axes = np.linalg.eigh(np.cov(z, rowvar=False))
    axes = axes[:, :-3:-1]
    axes = axes * np.sign(np.take_along_axis(axes, np.abs(axes).argmax(0)[None], 0))
    return PrincipalPlane(z @ axes, axes, variances[::-1])


def draw_plane(
    plane: PrincipalPlane, labels: np.ndarray | None = None, title: str = ""
) -> np.ndarray:
    """The codes in the plane over the prior's circles, and the variance of all components.

    Args:
      plane: see `principal_plane`.
      labels: (N,) integers, which colour the codes.
      title: of the picture.

    Returns: (H, W, 3) in [0, 1].
    """
    figure, (left, right) = two_panels()
    if labels is None:
        left.scatter(*plane.points.T, s=4)
    else:
        for number, label in enumerate(np.unique(labels)):
            points = plane.points[labels == label]
            left.scatter(*points.T, s=4, color=f"C{number % 10}", label=str(label))
        left.legend(title="label", markerscale=3, loc="center left", bbox_to_anchor=(1, 0.5))
    angle = np.linspace(0, 2 * math.pi, 200)
    for mass in MASSES:
        radius = math.sqrt(-2 * math.log(1 - mass))
        left.plot(radius * np.cos(angle), radius * np.sin(angle), color="grey", linewidth=0.8)
    left.set(xlabel="first component", ylabel="second component", title=title, aspect="equal")
    right.plot(np.arange(1, len(plane.variances) + 1), plane.variances, marker=".", label="codes")
    right.axhline(1, color="grey", linestyle="--", label="prior")
    right.set(xlabel="component", ylabel="variance", ylim=(0, None))
    right.legend()
    return pixels(figure)


@dataclasses.dataclass(frozen=True)
class Probe:
    """What a linear classifier reads from codes.

    accuracy: mean over the folds of images that it was not fitted to.
    spread: standard deviation over the folds.
    chance: of always saying the most frequent label.
    """

    accuracy: float
    spread: float
    chance: float


def linear_probe(codes: np.ndarray, labels: np.ndarray, folds: int = 5, seed: int = 0) -> Probe:
    """The cross-validated accuracy of logistic regression on standardised codes.

    Args:
      codes: (N, D), usually posterior means.
      labels: (N,) integers, two or more different ones, each of at least `folds` images.
      folds: of the cross-validation, stratified by label.
      seed: of the folds.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    counts = np.unique(labels, return_counts=True)[1]
    if len(counts) < 2 or counts.min() < folds:
        raise ValueError(
            f"{len(counts)} labels, the rarest of {counts.min()} images; "
            f"allowed for {folds} folds: 2 or more labels of {folds} or more images each"
        )
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    scores = cross_val_score(classifier, codes, labels, cv=split)
    return Probe(float(scores.mean()), float(scores.std()), float(counts.max() / counts.sum()))
