"""Latents on the stack, in bins of equal width on the scale of the prior.

A latent is z = m + s·n/2^j with the prior's mean m and sigma s, and a whole number n. The bins are
those of the prior, so posterior draws are coded in the same ones, and they follow the prior to
wherever the groups above have put it, as HiLLoC's do (Townsend et al., ICLR 2020). HiLLoC's have
equal mass. At equal width the tails cost less, and a shift by a flow is a bijection of the bins.

The precision j is chosen for each latent channel: a posterior that is narrow against its prior
needs fine bins, but every bit of precision has to be on the stack before the first image. Channels
of the precision `NONE` have a single bin, the prior's mean, and cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from nvae_jax.compression.coder import SPARE_BITS, ExhaustedError, MismatchError, Stack

NONE = -1
PRECISIONS = (NONE, 0, 1, 2, 3, 4, 5, 6, 7, 8)
_RADIUS = 8  # prior sigmas on both sides that have bins
_NORMAL_ENTROPY = 0.5 * np.log2(2 * np.pi * np.e)  # bits of a standard Normal in bins of width 1

# What coding a bit costs that is drawn from the opening, images that a simple codec has coded: by
# that share the simple codec needs more bits than the model.
_DEARER = 0.3

Shift = Callable[[np.ndarray], np.ndarray]  # from latents z to what a flow cell takes away


def choose_precisions(sensitivity: np.ndarray, images: float, batch: int, cells: int) -> np.ndarray:
    """The precisions with which a stream becomes shortest.

    Bins add noise to the latents, of variance 4^-j/12 on the prior's scale, once more for each flow
    cell. An image costs half of it times `sensitivity` nats more. (At an optimum of the ELBO, the
    curvature of -log p(x | z) is that of the posterior less that of the prior.) A stream costs,
    once, a share of the bits of a batch's latents.

    Args:
      sensitivity: (…, Z) mean of (prior sigma / posterior sigma)² - 1 over a channel.
      images: of the stream.
      batch: images whose latents are drawn before the first of them is coded.
      cells: flow cells of a group.

    Returns: (…, Z) int8.
    """
    precisions = np.asarray(PRECISIONS)
    used = precisions != NONE
    noise = np.where(used, (1 + cells) * 4.0**-precisions / 12, 1.0)
    bits = np.where(used, precisions + _NORMAL_ENTROPY, 0.0)
    sensitivity = np.maximum(sensitivity, 0.0)[..., None]
    cost = images * sensitivity * noise / (2 * np.log(2)) + _DEARER * batch * bits
    return precisions[cost.argmin(-1)].astype(np.int8)


class LatentBins:
    """The bins of one group of latents.

    Args:
      precisions: (Z,) of the channels.

    Attributes:
      entropy: bits of the Z latents at one position, under the prior.
    """

    def __init__(self, precisions: np.ndarray):
        self._precisions = precisions
        used = precisions != NONE
        self.entropy = float((precisions[used] + _NORMAL_ENTROPY).sum())
        self._width = np.where(used, 2.0 ** -precisions.astype(np.float64), 0.0)
        self._radius = np.where(used, _RADIUS << np.maximum(precisions, 0).astype(int), 0)

    def values(self, n: np.ndarray, mean: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        """The latents (B, h, w, Z) float32 of the numbers n under a prior."""
        return (mean.astype(np.float64) + sigma.astype(np.float64) * (n * self._width)).astype(
            np.float32
        )

    def draw(self, stack: Stack, offset: np.ndarray, ratio: np.ndarray) -> np.ndarray:
        """Draws from a posterior by popping: numbers n (B, h, w, Z).

        Args:
          stack: the stack.
          offset: (B, h, w, Z) from the prior's mean to the posterior's, in prior sigmas, float64.
          ratio: (B, h, w, Z) of the posterior's sigma to the prior's.

        Raises:
          ExhaustedError: the stack is too short.
        """
        n = np.zeros(offset.shape, np.int64)
        for channels, scale, model in self._models(stack):
            n[..., channels] = stack.pop(
                n[..., channels].shape, model, *self._scaled(channels, scale, offset, ratio)
            )
            if stack.bits < SPARE_BITS:
                raise ExhaustedError
        return n

    def undraw(self, stack: Stack, n: np.ndarray, offset: np.ndarray, ratio: np.ndarray) -> None:
        """Undoes `draw`, which returned n."""
        for channels, scale, model in reversed(list(self._models(stack))):
            stack.push(n[..., channels], model, *self._scaled(channels, scale, offset, ratio))

    def push(self, stack: Stack, n: np.ndarray) -> None:
        """Pushes numbers n (B, h, w, Z) under the prior."""
        for channels, scale, model in reversed(list(self._models(stack, prior=True))):
            del scale
            stack.push(n[..., channels], model)

    def pop(self, stack: Stack, shape: tuple[int, ...]) -> np.ndarray:
        """Pops numbers n (B, h, w, Z) that `push` was given."""
        n = np.zeros(shape, np.int64)
        for channels, _, model in self._models(stack, prior=True):
            n[..., channels] = stack.pop(n[..., channels].shape, model)
        return n

    def flow(self, n: np.ndarray, shift: Shift, mean: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        """What a flow cell that shifts latents does to their numbers; a bijection.

        z' = z - mu(z) is n' = n - mu(z) / width, rounded; beyond the last bin follows the first.
        """
        return self._wrapped(n - self._bins(shift(self.values(n, mean, sigma)), sigma))

    def unflow(
        self, n: np.ndarray, shift: Shift, mean: np.ndarray, sigma: np.ndarray
    ) -> np.ndarray:
        """The inverse of `flow`, by iteration.

        mu at a latent depends on earlier ones only, so every round makes at least one more latent
        right; in practice, a few rounds make all of them right.

        Raises:
          MismatchError: it has no inverse, so this is not what the encoder had.
        """
        before = n
        for _ in range(n[0].size + 1):
            guess = self._wrapped(n + self._bins(shift(self.values(before, mean, sigma)), sigma))
            if np.array_equal(guess, before):
                return before
            before = guess
        raise MismatchError("a flow has no inverse")

    def _bins(self, shift: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        relative = shift.astype(np.float64) / sigma.astype(np.float64)
        scale = np.divide(1.0, self._width, out=np.zeros_like(self._width), where=self._width > 0)
        limit = float(2 * self._radius.max(initial=0))
        return np.rint(np.clip(relative * scale, -limit, limit)).astype(np.int64)

    def _wrapped(self, n: np.ndarray) -> np.ndarray:
        period = 2 * self._radius + 1
        return (n + self._radius) % period - self._radius

    def _models(
        self, stack: Stack, prior: bool = False
    ) -> Iterator[tuple[np.ndarray, float, object]]:
        """Channels of one precision, bins per prior sigma, and the library's model."""
        for precision in np.unique(self._precisions[self._precisions != NONE]):
            channels = np.flatnonzero(self._precisions == precision)
            radius, scale = _RADIUS << int(precision), 2.0 ** int(precision)
            arguments = (0.0, scale) if prior else ()
            yield channels, scale, stack.models.QuantizedGaussian(-radius, radius, *arguments)

    @staticmethod
    def _scaled(channels, scale, offset, ratio):
        return offset[..., channels] * scale, ratio[..., channels] * scale
