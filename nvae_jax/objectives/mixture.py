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

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array, nn


@flax.struct.dataclass
class ClassTerms:
    """Terms of the negative ELBO with a class, in nats, (B,) each.

    reconstruction: −Σ_y q(y | x) log p(x | y, z).
    style_kl: KL(q(z | x) ‖ p(z)).
    class_kl: KL(q(y | x) ‖ p(y)), between 0 (undecided) and log K (sure).
    """

    reconstruction: Array
    style_kl: Array
    class_kl: Array

    @property
    def nelbo(self) -> Array:
        """(B,) the negative ELBO."""
        return self.reconstruction + self.style_kl + self.class_kl


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


def class_terms(class_logits: Array, log_likelihoods: Array, style_kl: Array) -> ClassTerms:
    """The terms, by the sum over all classes (arXiv 1406.5298, eq. 7).

    Args:
      class_logits: (B, K) of q(y | x).
      log_likelihoods: (B, K) log p(x | y, z) of one draw z and every class, nats.
      style_kl: (B,) nats.
    """
    log_q = nn.log_softmax(class_logits)
    q = jnp.exp(log_q)
    return ClassTerms(
        reconstruction=-(q * log_likelihoods).sum(1),
        style_kl=style_kl,
        class_kl=(q * log_q).sum(1) + jnp.log(class_logits.shape[1]),
    )


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
