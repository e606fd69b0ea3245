"""The encoder's KL as the critic of what the decoder makes: IntroVAE (arXiv 1807.06358, §3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import flax.struct
from jax import Array, lax, nn

# (encoder's parameters, images) → a draw of every code, (B, L), and KL(q(z | x) ‖ p(z)), (B,) nats.
Encode = Callable[[Any, Array], tuple[Array, Array]]
# (decoder's parameters, codes) → images.
Decode = Callable[[Any, Array], Array]


@flax.struct.dataclass
class Energies:
    """KL(q(z | x) ‖ p(z)), in nats, of three kinds of images, (B,) each.

    real: images of the dataset.
    reconstructed: the decoder's images of these images' codes.
    sampled: the decoder's images of draws of the prior.
    """

    real: Array
    reconstructed: Array
    sampled: Array


def introspect(
    encode: Encode,
    decode: Decode,
    encoder: Any,
    decoder: Any,
    x: Array,
    prior: Array,
    turn: Literal["encoder", "generator"],
) -> tuple[Energies, Array]:
    """What the two losses are made of, with the stopped gradients of one of the turns.

    In the encoder's turn the decoder's parameters are constants, and so are the decoded images
    where they are encoded again (algorithm 1's ng); the reconstruction's loss still reaches the
    encoder through the code. In the generator's turn the encoder's parameters are constants, and
    the energies' gradient passes through the encoder to the images.

    Args:
      encode: the encoder; it may keep what it updates, like batch-norm statistics, in its closure.
      decode: the decoder, likewise.
      encoder: the encoder's parameters.
      decoder: the decoder's parameters.
      x: (B, ...) images.
      prior: (B, L) draws of the prior.
      turn: who learns.

    Returns: the energies, and the reconstructions (B, ...), as `decode` gives them.
    """
    if turn == "encoder":
        decoder = lax.stop_gradient(decoder)
    else:
        encoder = lax.stop_gradient(encoder)
    z, real = encode(encoder, x)
    reconstructed, sampled = decode(decoder, z), decode(decoder, prior)
    shown = [reconstructed, sampled]
    if turn == "encoder":
        shown = lax.stop_gradient(shown)
    return Energies(real, *(encode(encoder, images)[1] for images in shown)), reconstructed


def encoder_loss(
    energies: Energies,
    reconstruction: Array,
    margin: float,
    adversarial: float,
    reconstruction_weight: float,
) -> Array:
    """What the encoder minimises (algorithm 1): low energy for real images, high for others.

    KL(real) + α ([m − KL(reconstructed)]⁺ + [m − KL(sampled)]⁺) + β L_AE.

    Args:
      energies: of images that are constants here: the decoder learns nothing from it.
      reconstruction: (B,) the reconstructions' loss L_AE.
      margin: m, nats: images of a larger energy have no more effect. It should be above the energy
        of real images under a plain VAE.
      adversarial: α.
      reconstruction_weight: β.

    Returns: ().
    """
    hinges = nn.relu(margin - energies.reconstructed) + nn.relu(margin - energies.sampled)
    return (energies.real + adversarial * hinges + reconstruction_weight * reconstruction).mean()


def generator_loss(
    energies: Energies, reconstruction: Array, adversarial: float, reconstruction_weight: float
) -> Array:
    """What the decoder minimises (algorithm 1): images to which the encoder gives low energy.

    α (KL(reconstructed) + KL(sampled)) + β L_AE. The encoder's parameters are constants here, but
    the energies' gradient passes through it to the images.

    Arguments and result are those of `encoder_loss`.
    """
    adversary = energies.reconstructed + energies.sampled
    return (adversarial * adversary + reconstruction_weight * reconstruction).mean()
