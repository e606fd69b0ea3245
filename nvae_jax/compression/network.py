"""The compiled pieces of a model between which a coder draws latents.

Encoder and decoder have to see the same numbers to the last bit. So both run the same compiled
pieces, on batches of one shape, on one device, and nothing that depends on which of the two it is
is compiled into them. What a row of a batch comes to does not depend on the other rows.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from nvae_jax.compilation import jit_on
from nvae_jax.compression.bit_depth import model_bits
from nvae_jax.compression.coder import library
from nvae_jax.compression.pixels import BernoulliPixels, MixturePixels, Pixels
from nvae_jax.compression.spent import Seconds
from nvae_jax.errors import require
from nvae_jax.evaluation.trained import TrainedModel
from nvae_jax.model import ModelConfig, VAEConfig, steps
from nvae_jax.model.folding import fold
from nvae_jax.parallel import make_mesh


@dataclasses.dataclass(frozen=True)
class Belief:
    """A Normal of a group's latents, on the host and on the device; (B, h, w, Z)."""

    mean: np.ndarray
    sigma: np.ndarray
    on_device: steps.Belief


class Network:
    """A model on its first device, for batches of `batch_size` images.

    Args:
      model: the model.
      batch_size: B.

    Attributes:
      spent: the time that its programs have taken, with compiling.

    Raises:
      ConfigError: the model's distributions cannot be coded.
    """

    def __init__(self, model: TrainedModel, batch_size: int):
        config = check_codable(model.config)
        library()
        self.config, self.batch_size, self.spent = config, batch_size, Seconds()
        self.device = model.mesh.local_devices[0]
        self._mesh = make_mesh([self.device])
        self._compiled: dict[Callable[..., Any], Callable[..., Any]] = {}
        variables = jax.device_put(jax.tree.map(np.asarray, model.variables), self.device)
        self._variables = self._run(_fold(config), variables)
        self._decoder = steps.decoder_variables(self._variables)
        self._groups = [
            steps.group_variables(config, self._variables, g) for g in range(config.total_groups)
        ]
        self._modules = [steps.group_module(config, g) for g in range(config.total_groups)]

    def taps(self, levels: np.ndarray) -> list[Array]:
        """What the posteriors see of levels (B, h, w, C) without the border; one a group."""
        return self._run(_taps(self.config), self._variables, levels)

    def start(self) -> tuple[Array, Belief]:
        """The features of the first group and its prior."""
        h, prior = self._run(_start(self.config, self.batch_size), self._decoder)
        return h, self._belief(0, prior)

    def posterior(self, group: int, h: Array, tap: Array, prior: Belief) -> Belief:
        """A group's posterior, before flows."""
        run = _posterior(self.config, self._modules[group])
        return self._belief(group, self._run(run, self._groups[group], h, tap, prior.on_device))

    def advance(self, group: int, h: Array, z: np.ndarray) -> tuple[Array, Belief]:
        """From latents (B, h, w, Z) of a group to the features and the prior of the next one."""
        s, below = (steps.scale_of_group(self.config, g) for g in (group, group + 1))
        run = _advance(self.config, *self._modules[group : group + 2], below if below != s else -1)
        h, prior = self._run(run, *self._groups[group : group + 2], self._decoder, h, z)
        return h, self._belief(group + 1, prior)

    def image(self, h: Array, z: np.ndarray) -> Callable[[np.ndarray], Pixels]:
        """From the last group's latents to a function from masks to the pixels' distribution.

        A mask is (B, h, w) bool, without the border.
        """
        run = _image(self.config, self._modules[-1])
        parts = self._run(run, self._groups[-1], self._decoder, h, z)
        border = self.config.image.border
        inner = {
            name: np.asarray(part)[
                ..., border : part.shape[-2] - border, border : part.shape[-1] - border
            ]
            for name, part in parts.items()
        }

        def pixels(mask: np.ndarray) -> Pixels:
            some = {name: part[..., mask] for name, part in inner.items()}
            if self.config.likelihood == "bernoulli":
                return BernoulliPixels(**some)
            return MixturePixels(**some, num_bits=self.config.num_bits)

        return pixels

    def flow_cells(self, group: int) -> list[Callable[[np.ndarray], np.ndarray]]:
        """What each flow cell of a group takes away from latents (B, h, w, Z), in their order."""

        def shift(name: str, cell: str) -> Callable[[np.ndarray], np.ndarray]:
            variables = {"params": self._groups[group]["params"][name][cell]}
            run = _shift(self.config, cell == "mirrored")
            return lambda z: np.asarray(self._run(run, variables, z))

        return [
            shift(f"flow_{i}", cell)
            for i in range(self.config.num_flows)
            for cell in ("forward", "mirrored")
        ]

    def fingerprint(self) -> int:
        """A CRC-32 of what a pass over made-up images comes to, to the last bit."""
        height, width, channels = self.config.image.inner_shape
        size = self.batch_size * height * width * channels
        levels = np.arange(size) * 40503 % 65521 % 2 ** model_bits(self.config)
        taps = self.taps(levels.reshape(self.batch_size, height, width, channels).astype(np.uint8))
        check = 0
        h, prior = self.start()
        for g, tap in enumerate(taps):
            posterior = self.posterior(g, h, tap, prior)
            for array in (prior.mean, prior.sigma, posterior.mean, posterior.sigma):
                check = zlib.crc32(array.tobytes(), check)
            z = posterior.mean
            for shift in self.flow_cells(g):
                z = z - shift(z)
            if g + 1 < len(taps):
                h, prior = self.advance(g, h, z)
        parts = self._run(
            _image(self.config, self._modules[-1]), self._groups[-1], self._decoder, h, z
        )
        for name in sorted(parts):
            check = zlib.crc32(np.asarray(parts[name]).tobytes(), check)
        return check

    def _belief(self, group: int, belief: steps.Belief) -> Belief:
        shape = (self.batch_size, *self.config.latent_shapes[group])
        mean, sigma = (np.broadcast_to(np.asarray(x), shape) for x in (belief.mean, belief.sigma))
        if not (np.isfinite(mean).all() and np.isfinite(sigma).all()):
            raise FloatingPointError(
                f"the distribution of the latents of group {group} is not finite"
            )
        return Belief(mean, sigma, belief)

    def _run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        if function not in self._compiled:
            self._compiled[function] = jit_on(self._mesh, function, reproducible=True)
        with self.spent.counted():
            return jax.block_until_ready(self._compiled[function](*arguments))


def check_codable(config: VAEConfig) -> ModelConfig:
    """Checks that a model's images and latents can be coded exactly, and returns it as an NVAE's.

    Raises:
      ConfigError: they cannot; the message says why.
    """
    probability = "bernoulli or logistic_mixture: a density is no probability that can be coded"
    by_groups = "nvae, to compress: no other network can be taken in steps from group to group"
    require("model.name", config.name, isinstance(config, ModelConfig), by_groups)
    assert isinstance(config, ModelConfig)  # which mypy does not know
    discrete = config.likelihood != "normal"
    require("model.likelihood", config.likelihood, discrete, f"to compress, {probability}")
    preserving = config.num_flows == 0 or config.flow == "shift"
    require(
        "model.flow",
        config.flow,
        preserving,
        "to compress, shift: other flows change the volume of the latents' bins, so what is coded "
        "would not be the posterior's density",
    )
    channels = config.image_shape[-1]
    require("model.image_shape", config.image_shape, channels <= 4, "to compress, 1 to 4 channels")
    return config


# The functions that are compiled. JAX knows them by their identity, so each is made once.


@functools.cache
def _fold(config):
    return functools.partial(fold, config)


@functools.cache
def _taps(config):
    def taps(variables, levels):
        x = levels.astype(jnp.float32) / (2 ** model_bits(config) - 1)
        return steps.taps(config, variables, config.image.with_border(x))

    return taps


@functools.cache
def _start(config, batch_size):
    return lambda decoder: steps.start(config, decoder, batch_size)


@functools.cache
def _posterior(config, module):
    return functools.partial(steps.posterior, config, module)


@functools.cache
def _advance(config, module, below, enlarge):
    def advance(variables, variables_below, decoder, h, z):
        h = steps.combine(module, variables, h, z)
        return steps.prior(config, below, variables_below, h, decoder, enlarge)

    return advance


@functools.cache
def _image(config, module):
    def image(variables, decoder, h, z):
        pixels = steps.image(config, decoder, steps.combine(module, variables, h, z))
        if config.likelihood == "bernoulli":
            return {"mean": jnp.moveaxis(pixels.mean(), -1, 0)}
        return {
            "weights": jax.nn.softmax(pixels.logits, axis=0),
            "means": pixels.means,
            "inverse_scales": jnp.exp(-pixels.log_scales),
            "coefficients": pixels.coefficients,
        }

    return image


@functools.cache
def _shift(config, mirrored):
    return lambda variables, z: steps.flow_shift(config, variables, z, mirrored)
