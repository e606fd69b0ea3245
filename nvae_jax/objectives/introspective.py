"""The encoder's KL as the critic of what the decoder makes: IntroVAE (arXiv 1807.06358, §3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array, lax, nn

from nvae_jax.model.distributions import Normal, error_of_logits, image_distribution
from nvae_jax.model.families import make_network
from nvae_jax.model.vae import VAEConfig
from nvae_jax.objectives.base import (
    Loss,
    Objective,
    Setting,
    Turn,
    require_one_code,
)

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


@dataclasses.dataclass(frozen=True)
class Intro(Objective):
    """IntroVAE: encoder and decoder in turn, see `encoder_loss` and `generator_loss`.

    The encoder sees the decoder's mean images. Running statistics are those of real images and
    their reconstructions, as in evaluation.
    """

    name: ClassVar[str] = "intro"

    margin: float = 25.0  # m, nats: above the KL of real images
    adversarial: float = 0.25  # α, of the KL as critic
    reconstruction_weight: float = 1.0  # β, of the reconstruction

    def __post_init__(self):
        super().__post_init__()
        self._require("margin", self.margin > 0, "a positive number")
        self._require("adversarial", self.adversarial >= 0, "0 or more")
        self._require("reconstruction_weight", self.reconstruction_weight > 0, "a positive number")

    @property
    def parts(self) -> tuple[Any, ...]:
        """Two turns."""
        return (self.name,)

    def check(self, model: VAEConfig, images: int) -> None:
        """It is for models with one code and no classes."""
        require_one_code(self, model)
        no_classes = model.total_groups == 1
        allowed = "elbo, decomposed, mmd, wae_gan with classes, because samples have a class, too"
        self._require("name", no_classes, allowed)

    def turns(self, model: VAEConfig, setting: Setting) -> tuple[Turn, ...]:
        """The encoder's loss, and the decoder's."""
        network = make_network(model)
        prior_of = Normal(jnp.zeros(()), jnp.ones(()))

        def make_loss(turn: Literal["encoder", "generator"]) -> Loss:
            def loss(
                params: Any, batch_stats: Any, x: Array, key: Array, weight: Array
            ) -> tuple[Array, Any]:
                del weight  # the KL has other tasks here
                key_prior, *keys = jax.random.split(key, 4)
                first: dict[str, Any] = {}  # what the first call of each tower leaves

                def run(tower: str, params: Any, method: str, *args: Any) -> Any:
                    value, updated = network.apply(
                        {"params": {tower: params}, "batch_stats": batch_stats},
                        *args,
                        train=True,
                        method=method,
                        mutable=["batch_stats"],
                    )
                    statistics = updated["batch_stats"]
                    first.setdefault(tower, (value, statistics[tower]))
                    return value

                def encode(params: Any, images: Array) -> tuple[Array, Array]:
                    encoded = run("encoder", params, "bottom_up", images)
                    posterior, _ = network.posterior(encoded)
                    noise = jax.random.normal(keys.pop(), posterior.mean.shape)
                    return posterior.sample(noise), posterior.kl(prior_of).sum(1)

                def decode(params: Any, codes: Array) -> Array:
                    noise = [codes[:, None, None]]
                    logits = run("decoder", params, "sample_prior", len(codes), 1.0, noise)
                    images = model.image.without_border(image_distribution(model, logits).mean())
                    return model.image.with_border(images)

                prior = jax.random.normal(key_prior, (len(x), model.latent_shapes[-1][-1]))
                towers = params["encoder"], params["decoder"]
                energies, _ = introspect(encode, decode, *towers, x, prior, turn)
                (_, of_encoder), (logits, of_decoder) = first["encoder"], first["decoder"]
                reconstruction = error_of_logits(model, logits, x)
                weights = self.adversarial, self.reconstruction_weight
                if turn == "encoder":
                    value = encoder_loss(energies, reconstruction, self.margin, *weights)
                    return value, ({"loss": value}, batch_stats)
                value = generator_loss(energies, reconstruction, *weights)
                kl = energies.real
                metrics = {
                    "reconstruction": reconstruction.mean(),
                    "kl": kl.mean(),
                    "group_kl": kl.mean(keepdims=True),
                    "kl_of_reconstructions": energies.reconstructed.mean(),
                    "kl_of_samples": energies.sampled.mean(),
                    "loss": value,
                }
                if model.has_likelihood:
                    metrics["nelbo"] = (reconstruction + kl).mean()
                return value, (metrics, {"encoder": of_encoder, "decoder": of_decoder})

            return loss

        return (
            Turn(make_loss("encoder"), "encoder", ("encoder",)),
            Turn(make_loss("generator"), "decoder", ("decoder",)),
        )
