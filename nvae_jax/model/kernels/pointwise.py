"""1×1 convolution: a matrix product over pixels, whose kernel gradient has its own order on CPU."""

from __future__ import annotations

import jax
from jax import Array, lax


def pointwise_conv(x: Array, kernel: Array) -> Array:
    """Convolves with a 1×1 kernel.

    Args:
      x: (B, H, W, I).
      kernel: (1, 1, I, O).

    Returns: (B, H, W, O).
    """
    # Over flattened pixels, because XLA's CPU backend would otherwise transpose the gradient of the
    # output before multiplying it with x for the gradient of the kernel.
    y = _multiply(x.reshape(-1, x.shape[-1]), kernel[0, 0])
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


@jax.custom_vjp
def _multiply(x, matrix):
    return x @ matrix


def _multiply_forward(x, matrix):
    return x @ matrix, (x, matrix)


def _multiply_backward(residuals, g):
    x, matrix = residuals
    return g @ matrix.T, lax.platform_dependent(x, g, cpu=_narrower_first, default=_over_pixels)


_multiply.defvjp(_multiply_forward, _multiply_backward)


def _over_pixels(x, g):
    """The plain formula of the kernel gradient: (pixels, I) and (pixels, O) → (I, O)."""
    return x.T @ g


def _narrower_first(x, g):
    """`_over_pixels` with the factor that has fewer columns on the left.

    XLA's CPU backend computes a sum over very many pixels faster in that order.
    """
    if x.shape[1] <= g.shape[1]:
        return x.T @ g
    # Without the barrier, XLA swaps the factors back to save the transposition.
    return lax.optimization_barrier(g.T @ x).T
