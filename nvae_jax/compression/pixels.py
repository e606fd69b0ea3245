"""Pixels on the stack: a level is a path of yes-or-no decisions, from its highest bit down.

Each decision is whether the level is in the upper half of what is left, with the conditional
probability that the model gives to that. A decision keeps at least a count of 2^-20 for either
answer, so every level can be coded. The channels of a pixel are coded one after the other, each
given the earlier ones: exactly the likelihood of `nvae_jax.model.distributions`, by the chain rule.

Exponentials of the network's output are taken on the device and arrive as float32. What is left is
float64 on the host: a logistic function, and sums in a fixed order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np

from nvae_jax.compression.coder import Stack

_COUNTS = 2.0**20
LEAST_BITS = -math.log2(1 - 1 / _COUNTS)  # that a decision costs

Below = Callable[[np.ndarray], np.ndarray]  # from levels (N,) to the probability of lower ones


class Pixels(Protocol):
    """The distribution of N pixels of C channels."""

    channels: int
    num_bits: int

    def below(self, channel: int, earlier: np.ndarray) -> Below:
        """The cumulative distribution of a channel, for levels from 1 to 2^bits - 1.

        To be called for one channel after the other.

        Args:
          channel: its number.
          earlier: (channel, N) levels of the earlier ones.
        """


class BernoulliPixels:
    """Independent binary pixels.

    Args:
      mean: (C, N), probabilities of 1.
    """

    num_bits = 1

    def __init__(self, mean: np.ndarray):
        self.channels = len(mean)
        self._zero = 1.0 - mean.astype(np.float64)

    def below(self, channel: int, earlier: np.ndarray) -> Below:
        """See `Pixels`."""
        del earlier
        return lambda level: self._zero[channel]


class MixturePixels:
    """A mixture of M discretised logistics, see `logistic_mixture.LogisticMixture`.

    Args:
      weights: (M, N), which sum to 1.
      means: (C, M, N).
      inverse_scales: (C, M, N).
      coefficients: (pairs, M, N).
      num_bits: of the levels.
    """

    def __init__(
        self,
        weights: np.ndarray,
        means: np.ndarray,
        inverse_scales: np.ndarray,
        coefficients: np.ndarray,
        num_bits: int,
    ):
        self.channels, self.num_bits = len(means), num_bits
        self._steps = 2**num_bits - 1
        self._weights, self._means, self._inverse_scales, self._coefficients = (
            array.astype(np.float64) for array in (weights, means, inverse_scales, coefficients)
        )
        self._joint = self._weights  # times the masses of the earlier channels' levels

    def below(self, channel: int, earlier: np.ndarray) -> Below:
        """See `Pixels`."""
        weights = self._weights
        if channel:
            weights = self._joint * self._mass(channel - 1, earlier)
        self._joint = weights
        weights = weights + 1e-30  # where a value is impossible under all components
        weights = weights / _sum(weights)
        slope, start = self._edges(channel, earlier)

        def below(level: np.ndarray) -> np.ndarray:
            mass = slope * level
            mass += start
            np.exp(mass, out=mass)
            mass += 1.0
            return _sum(np.divide(weights, mass, out=mass))

        return below

    def _edges(self, channel: int, earlier: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The mass below a level's bin is 1 / (1 + exp(slope · level + start)), by component."""
        mean = self._means[channel]
        first = channel * (channel - 1) // 2
        for j in range(channel):
            value = 2.0 * earlier[j] / self._steps - 1.0
            mean = mean + self._coefficients[first + j] * value
        inverse_scale = self._inverse_scales[channel]
        return (
            -2.0 / self._steps * inverse_scale,
            (mean + (1.0 + 1.0 / self._steps)) * inverse_scale,
        )

    def _mass(self, channel: int, earlier: np.ndarray) -> np.ndarray:
        """The masses (M, N) of a channel's levels in the components."""
        level = earlier[channel]
        slope, start = self._edges(channel, earlier)
        # σ(a) - σ(b) is (e^-b - e^-a) / ((1 + e^-a)(1 + e^-b)), exact in both tails.
        low = np.exp(np.minimum(slope * level + start, 300.0))
        high = np.exp(np.minimum(slope * (level + 1) + start, 300.0))
        mass = (low - high) / ((1.0 + low) * (1.0 + high))
        mass = np.where(level == 0, 1.0 / (1.0 + high), mass)
        return np.where(level == self._steps, low / (1.0 + low), mass)


def _sum(parts: np.ndarray) -> np.ndarray:
    """The sum over the first axis, in its order: `np.sum` may choose another by the machine."""
    total = parts[0].copy()
    for part in parts[1:]:
        total += part
    return total


@np.errstate(over="ignore")  # 1 / infinity is right
def _walk(
    pixels: Pixels, number: int, decide: Callable[[int, int, np.ndarray], np.ndarray]
) -> np.ndarray:
    """Takes all decisions about N pixels; returns their levels (C, N).

    Args:
      pixels: their distribution.
      number: N.
      decide: from a channel, the number of a bit and the probabilities (N,) that it is set to the
        bits (N,).
    """
    levels = np.zeros((pixels.channels, number), np.int64)
    for channel in range(pixels.channels):
        below = pixels.below(channel, levels[:channel])
        level = levels[channel]
        below_low, below_high = np.zeros(number), np.ones(number)
        for bit in reversed(range(pixels.num_bits)):
            below_middle = below(level + (1 << bit))
            left = below_high - below_low
            # Where nearly nothing is left, either half is as good as the other.
            upper = np.full(number, 0.5)
            np.divide(below_high - below_middle, left, out=upper, where=left > 1e-12)
            upper = np.clip(np.rint(upper * _COUNTS), 1.0, _COUNTS - 1.0) / _COUNTS
            bits = decide(channel, bit, upper)
            level += bits.astype(np.int64) << bit
            below_low = np.where(bits, below_middle, below_low)
            below_high = np.where(bits, below_high, below_middle)
    return levels


def push_pixels(stack: Stack, pixels: Pixels, levels: np.ndarray) -> None:
    """Pushes levels (C, N)."""
    decisions = []

    def note(channel: int, bit: int, probability: np.ndarray) -> np.ndarray:
        bits = levels[channel] >> bit & 1
        decisions.append((bits, probability))
        return bits

    _walk(pixels, levels.shape[1], note)
    bits, probabilities = map(np.stack, zip(*decisions, strict=True))
    stack.push(bits, stack.binary, probabilities)


def pop_pixels(stack: Stack, pixels: Pixels, number: int) -> np.ndarray:
    """Pops the levels (C, N) that `push_pixels` was given, N of them."""

    def pop(channel: int, bit: int, probability: np.ndarray) -> np.ndarray:
        del channel, bit
        return stack.pop((number,), stack.binary, probability)

    return _walk(pixels, number, pop)
