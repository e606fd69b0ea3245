"""Class and style: a discrete code y of K classes beside z, marginalised exactly.

The model is p(y) p(z) p(x | y, z) with uniform y and z ~ N(0, I), that of Kingma et al. (M2, arXiv
1406.5298, §2) without labels. The posterior is q(y | x) q(z | x): a style z does not depend on the
class, so that it means the same in every class and one draw of it serves all K decodings. A z for
each class, q(z | x, y), would allow a tighter bound and need K draws, and the prior of VaDE (arXiv
1611.05148), a Gaussian of z for each class, would leave no style that classes share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, nn


def decode_classes(decode: Callable[[Array, Array], Any], z: Array, classes: int) -> Any:
    """Decodes every style as every class in one pass over B · K codes.

    Args:
      decode: of styles (B · K, L) and one-hot classes (B · K, K).
      z: (B, L) styles.
      classes: K.

    Returns: what `decode` returns, with the axes (B, K) instead of the first.
    """
    batch = len(z)
    y = jnp.tile(jnp.eye(classes, dtype=z.dtype), (batch, 1))
    decoded = decode(jnp.repeat(z, classes, axis=0), y)
    return jax.tree.map(lambda leaf: leaf.reshape(batch, classes, *leaf.shape[1:]), decoded)


def class_kl_parts(class_logits: Array) -> tuple[Array, Array]:
    """The mean KL of the classes in two parts, as the KL of z has them, each () and 0 or more.

    The first is the mutual information of image and class, which is large where classes are told
    apart; the second the KL of the batch's mean q(y) to the uniform one, large where few classes
    are in use. For a factor of its own each, as in `decomposed_kl`.

    Args:
      class_logits: (B, K) of q(y | x).
    """
    log_q = nn.log_softmax(class_logits)
    log_mean = nn.logsumexp(log_q, axis=0) - jnp.log(len(class_logits))
    imbalance = (jnp.exp(log_mean) * log_mean).sum() + jnp.log(class_logits.shape[1])
    return (jnp.exp(log_q) * (log_q - log_mean)).sum(1).mean(), imbalance


def class_kl(class_logits: Array) -> Array:
    """KL(q(y | x) ‖ p(y)) of classes that are equally likely: (B, K) → (B,) nats."""
    log_q = nn.log_softmax(class_logits)
    return (jnp.exp(log_q) * log_q).sum(-1) + jnp.log(class_logits.shape[-1])


def draw_class(class_logits: Array, noise: Array) -> Array:
    """The class that standard-normal noise becomes, one-hot, by the Gumbel-max trick.

    Zeros as noise give the likeliest class. Where all classes are equally likely, it is that of the
    largest noise.

    Args:
      class_logits: (…, K).
      noise: (…, K).
    """
    # Φ(6) is 1 in float32; a margin keeps the logarithms finite.
    uniform = jnp.clip(jax.scipy.stats.norm.cdf(noise), 1e-7, 1 - 1e-7)
    gumbel = -jnp.log(-jnp.log(uniform))
    scores = nn.log_softmax(class_logits) + gumbel
    return nn.one_hot(jnp.argmax(scores, -1), class_logits.shape[-1])


def noise_of_class(y: Array, noise: Array) -> Array:
    """Noise from which `draw_class` makes `y` where all classes are equally likely.

    The largest of the numbers changes places with that of the class.

    Args:
      y: (…, K) one-hot.
      noise: (…, K).
    """
    largest = nn.one_hot(jnp.argmax(noise, -1), noise.shape[-1])
    at_class = (noise * y).sum(-1, keepdims=True)
    at_largest = noise.max(-1, keepdims=True)
    return jnp.where(y > 0, at_largest, jnp.where(largest > 0, at_class, noise))


def expected(class_logits: Array | None, values: Array) -> Array:
    """Σ_y q(y | x) of values (B, K): (B,); without classes, the values (B,) as they are."""
    return values if class_logits is None else (nn.softmax(class_logits) * values).sum(1)


def marginal(class_logits: Array | None, log_likelihoods: Array) -> Array:
    """log Σ_y p(y) p(x | y, z) of log-likelihoods (B, K): (B,); without classes, as they are."""
    if class_logits is None:
        return log_likelihoods
    return nn.logsumexp(log_likelihoods, axis=1) - jnp.log(log_likelihoods.shape[1])
