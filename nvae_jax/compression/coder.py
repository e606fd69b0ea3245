"""The stack that everything is coded on: `constriction`'s ANS coder, and what it does not know.

Asymmetric numeral systems (Duda et al., 2015) are last in, first out: what was pushed last is
popped first. Popping what was never pushed draws a sample, and pushing it again undoes that, which
is what bits-back coding is made of (Townsend et al., BB-ANS, ICLR 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from nvae_jax.errors import ConfigError

SPARE_BITS = 64  # must be left on the stack, or its last words are no longer random
_SCRAMBLED = 16  # bits at a time


class ExhaustedError(Exception):
    """More bits were popped as samples than there are on the stack."""


class MismatchError(Exception):
    """The numbers or the bits are not those that the encoder had."""


def library() -> ModuleType:
    """`constriction`, imported on first use.

    Raises:
      ConfigError: it is not installed.
    """
    try:
        import constriction
    except ImportError as error:
        raise ConfigError(
            f"compression needs the package constriction ({error}); "
            "allowed: pip install 'nvae-jax[compression]'"
        ) from error
    return constriction


class Stack:
    """An ANS coder on 32-bit words.

    Args:
      words: (N,) uint32.
      seal: whether the words are any data to start from rather than an earlier stack.

    Attributes:
      models: the library's models.
      binary: of these, the one of bits, whose parameter is the probability of 1.
    """

    def __init__(self, words: np.ndarray, seal: bool = False):
        self.models = library().stream.model
        self.binary = self.models.Bernoulli(perfect=False)
        words = np.ascontiguousarray(words, np.uint32)
        try:
            self._coder: Any = library().stream.stack.AnsCoder(words, seal)
        except ValueError as error:
            raise MismatchError(str(error)) from error

    @property
    def bits(self) -> int:
        """What is on the stack."""
        return self._coder.num_valid_bits()

    def words(self, unseal: bool = False) -> np.ndarray:
        """The stack as (N,) uint32; unseal: the words that a sealed one was started from.

        Raises:
          MismatchError: unsealed, it is not what a stack was started from.
        """
        try:
            return np.asarray(self._coder.get_compressed(unseal), np.uint32)
        except (AssertionError, ValueError) as error:
            raise MismatchError("the last bits are not those that coding began with") from error

    def scramble(self, bits: int) -> None:
        """Makes so many bits at the top look random; done again, they are as they were.

        A sample is as random as the bits that it is popped from. Those at the top are what was
        pushed last, the latents of other images under their prior: without this, one whose latent
        is in a tail of the prior would have the next image's in the same tail of its posterior.
        """
        number = max(0, min(bits, self.bits - SPARE_BITS) // _SCRAMBLED)
        key = np.random.PCG64(self.bits).random_raw(number) >> np.uint64(64 - _SCRAMBLED)
        uniform = self.models.Uniform(1 << _SCRAMBLED)
        if number:
            self.push(self.pop((number,), uniform) ^ key.astype(np.int32), uniform)

    def push(self, symbols: np.ndarray, model: Any, *parameters: np.ndarray) -> None:
        """Pushes symbols of any shape, whose parameters have the same shape.

        Raises:
          MismatchError: a symbol or a parameter is impossible under the model.
        """
        flat = _flat(parameters)
        try:
            self._coder.encode_reverse(symbols.astype(np.int32).ravel(), model, *flat)
        except (KeyError, ValueError) as error:
            raise MismatchError(str(error)) from error

    def pop(self, shape: tuple[int, ...], model: Any, *parameters: np.ndarray) -> np.ndarray:
        """Pops int32 symbols of a shape, in the order in which `push` was given them.

        Raises:
          MismatchError: a parameter is impossible under the model.
        """
        flat: list[Any] = _flat(parameters)
        try:
            symbols = self._coder.decode(model, *(flat or [int(np.prod(shape))]))
        except (AssertionError, ValueError) as error:
            raise MismatchError(str(error)) from error
        return np.asarray(symbols, np.int32).reshape(shape)


def _flat(parameters: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What the library is given, which panics where a parameter is impossible.

    The last parameter is a standard deviation or a probability.
    """
    flat = [np.ascontiguousarray(p, np.float64).ravel() for p in parameters]
    if not all(np.isfinite(p).all() for p in flat) or (flat and not (flat[-1] > 0).all()):
        raise MismatchError("a distribution is not finite")
    return flat
