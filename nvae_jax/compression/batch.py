"""A batch of tiles on the stack, by bits back.

Encoding scrambles the top of the stack and draws the latents from their posteriors, by popping them
group by group from the top; then pushes the pixels, and then the latents under their priors, in
reverse. Decoding pops the latents under their priors, from the top, and the pixels; now it knows
the posteriors, and pushes the latents back, which leaves the stack as it was before the batch.

All latents have to be drawn before the first pixel is coded: the posterior of a group depends on
the image and on the groups above, so no group can be undrawn before the image is known, and the
image depends on all groups. (Bit-Swap's interleaving needs latents that only depend on their
neighbours; Kingma et al., ICML 2019.)
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from nvae_jax.compression.bit_depth import least_bits
from nvae_jax.compression.coder import SPARE_BITS, MismatchError, Stack
from nvae_jax.compression.latents import LatentBins
from nvae_jax.compression.network import Belief, Network
from nvae_jax.compression.pixels import pop_pixels, push_pixels
from nvae_jax.compression.spent import Seconds
from nvae_jax.compression.tiles import completed


class BatchCoder:
    """Codes batches of tiles.

    Args:
      network: the model.
      precisions: (Z,) of each group, see `latents`.
      low_bits: bits of a level below those that the model codes, which are stored as they are.
      spent: is told the time of pushing and popping.
      scrambled: whether the stack is scrambled before latents are drawn, see `Stack.scramble`.

    Attributes:
      tile_shape: (h, w, C).
      batch_size: the most tiles of a batch.
      entropy: bits that the latents of a tile draw from the stack, about.
      least_bits: bits that a pixel costs, at the least.
      ledger: bits that were pushed, less those that were popped, by what they are: `drawn 0`,
        `latents 0`, …, `pixels` and `low bits`.
    """

    def __init__(
        self,
        network: Network,
        precisions: Sequence[np.ndarray],
        low_bits: int,
        spent: Seconds,
        scrambled: bool = True,
    ):
        self._network, self._low_bits, self._spent = network, low_bits, spent
        self._scrambled = scrambled
        self.tile_shape = network.config.image.inner_shape
        self.batch_size = network.batch_size
        self._bins = [LatentBins(np.asarray(group)) for group in precisions]
        self._cells = [network.flow_cells(g) for g in range(len(precisions))]
        self.entropy = sum(
            float(np.prod(shape[:2])) * bins.entropy
            for shape, bins in zip(network.config.latent_shapes, self._bins, strict=True)
        )
        self.least_bits = least_bits(network.config, low_bits)
        self.ledger: Counter[str] = Counter()

    def encode(self, stack: Stack, tiles: np.ndarray, mask: np.ndarray) -> None:
        """Pushes tiles.

        Args:
          stack: the stack.
          tiles: (N, h, w, C) uint8 levels, N at most the network's batch size.
          mask: (N, h, w) bool, the pixels that are coded.

        Raises:
          ExhaustedError: there are too few bits on the stack to draw from.
        """
        network, count = self._network, len(tiles)
        levels = self._filled(tiles >> self._low_bits)
        self._scramble(stack, count)
        h, prior = network.start()
        drawn = []
        for g, tap in enumerate(network.taps(levels)):
            posterior = network.posterior(g, h, tap, prior)
            with self._noted(stack, f"drawn {g}"):
                n = self._bins[g].draw(stack, *_relative(prior, posterior, count))
            n = self._through_flows(g, n, prior)
            drawn.append(n)
            z = self._bins[g].values(self._filled(n), prior.mean, prior.sigma)
            if g + 1 < len(self._bins):
                h, prior = network.advance(g, h, z)
        pixels = network.image(h, z)(self._filled(mask))
        with self._noted(stack, "low bits"):
            if self._low_bits:
                low = tiles[mask] & ((1 << self._low_bits) - 1)
                stack.push(low, stack.models.Uniform(1 << self._low_bits))
        with self._noted(stack, "pixels"):
            push_pixels(stack, pixels, levels[:count][mask].T.astype(np.int64))
        for g in reversed(range(len(drawn))):
            with self._noted(stack, f"latents {g}"):
                self._bins[g].push(stack, drawn[g])

    def decode(self, stack: Stack, mask: np.ndarray) -> np.ndarray:
        """Pops the tiles that `encode` was given; (N, h, w, C) uint8.

        Raises:
          MismatchError: the stack or the network's numbers are not those of the encoder.
        """
        network, count = self._network, len(mask)
        h, prior = network.start()
        seen = []
        for g, bins in enumerate(self._bins):
            with self._spent.counted():
                n = bins.pop(stack, (count, *prior.mean.shape[1:]))
            seen.append((h, prior, n))
            z = bins.values(self._filled(n), prior.mean, prior.sigma)
            if g + 1 < len(self._bins):
                h, prior = network.advance(g, h, z)
        pixels = network.image(h, z)(self._filled(mask))
        with self._spent.counted():
            popped = pop_pixels(stack, pixels, int(mask.sum()))
        levels = np.zeros((*mask.shape, len(popped)), np.uint8)
        levels[mask] = popped.T
        tiles = levels << self._low_bits
        if self._low_bits:
            model = stack.models.Uniform(1 << self._low_bits)
            tiles[mask] |= stack.pop(popped.T.shape, model).astype(np.uint8)
        if self.entropy and stack.bits < SPARE_BITS:  # which the encoder leaves, see `draw`
            raise MismatchError("the stack is exhausted")
        for i, pixels_of_tile in enumerate(mask):
            rows, columns = pixels_of_tile.any(1).sum(), pixels_of_tile.any(0).sum()
            tiles[i] = completed(tiles[i, :rows, :columns], mask.shape[1:])
        taps = network.taps(self._filled(tiles >> self._low_bits))
        parts = []
        for g, (h, prior, n) in enumerate(seen):
            posterior = network.posterior(g, h, taps[g], prior)
            parts.append((self._back_through_flows(g, n, prior), posterior))
        for g in reversed(range(len(parts))):
            n, posterior = parts[g]
            with self._spent.counted():
                self._bins[g].undraw(stack, n, *_relative(seen[g][1], posterior, count))
        self._scramble(stack, count)
        return tiles

    def _scramble(self, stack: Stack, count: int) -> None:
        """Scrambles the bits that the latents of `count` tiles are drawn from, or undoes that."""
        if self._scrambled:
            with self._spent.counted():
                stack.scramble(math.ceil(count * self.entropy))

    def _through_flows(self, group: int, n: np.ndarray, prior: Belief) -> np.ndarray:
        for shift in self._cells[group]:
            n = self._bins[group].flow(n, self._on_batch(shift, len(n)), *_head(prior, len(n)))
        return n

    def _back_through_flows(self, group: int, n: np.ndarray, prior: Belief) -> np.ndarray:
        for shift in reversed(self._cells[group]):
            n = self._bins[group].unflow(n, self._on_batch(shift, len(n)), *_head(prior, len(n)))
        return n

    def _on_batch(self, function: Callable[[np.ndarray], np.ndarray], count: int):
        return lambda z: function(self._filled(z))[:count]

    def _filled(self, rows: np.ndarray) -> np.ndarray:
        """Rows (N, …), completed by zeros to the network's batch (B, …)."""
        missing = self._network.batch_size - len(rows)
        return np.pad(rows, ((0, missing), *[(0, 0)] * (rows.ndim - 1)))

    @contextlib.contextmanager
    def _noted(self, stack: Stack, name: str) -> Iterator[None]:
        """Around what is pushed or popped: notes its bits, and the time."""
        before = stack.bits
        with self._spent.counted():
            yield
        self.ledger[name] += stack.bits - before


def _head(prior: Belief, count: int) -> tuple[np.ndarray, np.ndarray]:
    return prior.mean[:count], prior.sigma[:count]


def _relative(prior: Belief, posterior: Belief, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The posterior's mean and sigma on the scale of the prior, for `count` images; float64."""
    mean, sigma = (x.astype(np.float64) for x in _head(prior, count))
    offset = (posterior.mean[:count] - mean) / sigma
    return offset, posterior.sigma[:count] / sigma
