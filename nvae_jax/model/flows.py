"""Autoregressive flows that make the posterior of a group more expressive (NVAE, §3.2)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from nvae_jax.model.convolution import Conv

EXPANSION = 6  # channels inside a cell for every latent
COMPONENTS = 3  # logistics of a `mixture_logistic` cell
_HEAD_SHIFT = float(np.log(10.0))  # a fresh cell moves its latents little


def causal_mask(shape: tuple[int, ...], strict: bool, mirrored: bool) -> np.ndarray:
    """What a kernel may see, in raster order: a pixel's past and, at the pixel, earlier latents.

    Channels belong to as many equal groups, one a latent, as the fewer of inputs and outputs.

    Args:
      shape: (k, k, inputs, outputs) of the kernel; a depthwise kernel has one input.
      strict: a latent does not see itself.
      mirrored: the reverse raster order; the order of the channels stays.

    Returns: the mask, (k, k, inputs, outputs) float32.
    """
    k, _, inputs, outputs = shape
    centre = k // 2
    mask = np.zeros(shape, np.float32)
    mask[:centre] = 1.0
    mask[centre, :centre] = 1.0
    if inputs == 1:
        mask[centre, centre] = not strict
    else:
        latents = min(inputs, outputs)
        seen = np.arange(inputs)[:, None] // (inputs // latents)
        seeing = np.arange(outputs)[None, :] // (outputs // latents)
        mask[centre, centre] = seen < seeing if strict else seen <= seeing
    return mask[::-1, ::-1] if mirrored else mask


class MaskedConv(Conv):
    """Weight-normalised convolution that keeps to a raster order."""

    strict: bool = False
    mirrored: bool = False

    def kernel_mask(self, shape: tuple[int, ...]) -> np.ndarray:
        """See `causal_mask`."""
        return causal_mask(shape, self.strict, self.mirrored)


def kernel_mask(path: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray | None:
    """The mask of the kernel at `path` of a model's parameters; None: it has none.

    A flow's convolutions say by their names what they are; see `FlowCell` and `FlowPair`.
    """
    if not any(name.startswith("flow_") for name in path):
        return None
    return causal_mask(shape[-4:], strict="strict_conv" in path, mirrored="mirrored" in path)


class FlowCell(nn.Module):
    """One autoregressive transformation of a group's latents.

    `shift`: z' = z - mu(z), which preserves volume. `mixture_logistic`: an affine function of the
    logit of a mixture of logistic CDFs (Flow++, Ho et al., 2019).
    """

    kind: str
    mirrored: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: Array) -> tuple[Array, Array]:
        """z: (B, H, W, Z) float32 → transformed z and log-determinants, both (B, H, W, Z)."""
        latents = z.shape[-1]
        hidden = EXPANSION * latents
        options = {"mirrored": self.mirrored, "dtype": self.dtype}
        x = MaskedConv(hidden, 3, strict=True, use_bias=False, **options, name="strict_conv")(z)
        x = MaskedConv(hidden, 5, groups=hidden, use_bias=False, **options, name="depthwise_conv")(
            nn.elu(x)
        )
        outputs = latents if self.kind == "shift" else latents * (3 * COMPONENTS + 3)
        # The activation is applied twice, as in the original.
        x = nn.elu(nn.elu(x))
        x = MaskedConv(outputs, log_gain_shift=_HEAD_SHIFT, **options, name="head")(x)
        x = x.astype(jnp.float32)
        if self.kind == "shift":
            return z - x, jnp.zeros_like(z)
        return mixture_logistic_transform(z, *split_mixture_parameters(x, latents))


def split_mixture_parameters(x: Array, latents: int) -> tuple[Array, ...]:
    """(B, H, W, Z·(3K+3)) → logits, means, log-scales (B, H, W, Z, K), log a and b (B, H, W, Z)."""
    x = x.reshape(*x.shape[:-1], latents, 3 * COMPONENTS + 3)
    logits, means, log_scales, affine = jnp.split(
        x, [COMPONENTS, 2 * COMPONENTS, 3 * COMPONENTS], axis=-1
    )
    return logits, means, jnp.maximum(log_scales, -7.0), affine[..., 0], affine[..., 1]


def mixture_logistic_transform(
    z: Array, logits: Array, means: Array, log_scales: Array, log_a: Array, b: Array
) -> tuple[Array, Array]:
    """z' = e^a · logit(F(z)) + b, with F the CDF of a mixture of K logistics.

    z, log_a and b are (B, H, W, Z); logits, means and log_scales (B, H, W, Z, K).

    Returns: z' and log dz'/dz, both (B, H, W, Z).
    """
    log_weights = nn.log_softmax(logits)
    standardized = (z[..., None] - means) * jnp.exp(-log_scales)
    below, above = nn.log_sigmoid(standardized), nn.log_sigmoid(-standardized)
    log_cdf = nn.logsumexp(log_weights + below, axis=-1)
    log_survival = nn.logsumexp(log_weights + above, axis=-1)
    log_density = nn.logsumexp(log_weights + below + above - log_scales, axis=-1)
    transformed = jnp.exp(log_a) * (log_cdf - log_survival) + b
    return transformed, log_a - log_cdf - log_survival + log_density


class FlowPair(nn.Module):
    """A cell in raster order, then one in the reverse order."""

    kind: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: Array) -> tuple[Array, Array]:
        """z: (B, H, W, Z) → transformed z and log-determinants, both (B, H, W, Z)."""
        z, first = FlowCell(self.kind, mirrored=False, dtype=self.dtype, name="forward")(z)
        z, second = FlowCell(self.kind, mirrored=True, dtype=self.dtype, name="mirrored")(z)
        return z, first + second
