"""The negative ELBO of a whole split, and importance-weighted bounds of images."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh

from nvae_jax.compilation import compiled_together, jit_on
from nvae_jax.evaluation.batches import on_pixels, over_split
from nvae_jax.evaluation.trained import TrainedModel, image_keys
from nvae_jax.model.architecture import ModelConfig
from nvae_jax.model.distributions import log_likelihood
from nvae_jax.model.folding import FoldedNVAE
from nvae_jax.model.nvae import NVAE
from nvae_jax.parallel import batch_sharding, replicated

if TYPE_CHECKING:
    from nvae_jax.data.sources import Source


def make_validation_terms(config: ModelConfig, mesh: Mesh) -> Callable[..., dict[str, Array]]:
    """A compiled function `(variables, batch, number)` to the terms of the NELBO of test images.

    Args:
      config: the model's configuration.
      mesh: the devices.

    Returns: the function. Its batch is one of `eval_batches`, and the batch's number decides the
      draws. It returns `reconstruction` (B,) and `group_kl` (B, groups) in nats, one draw per
      image.
    """
    model = NVAE(config)

    def terms(variables: Any, x: Array, index: Array, number: Array) -> dict[str, Array]:
        del index
        key = jax.random.fold_in(jax.random.key(0), number)
        output: Any = model.apply(variables, x, train=False, rngs={"sample": key})
        return {
            "reconstruction": -log_likelihood(config, output.logits, x),
            "group_kl": output.kl,
        }

    return jit_on(
        mesh,
        on_pixels(config.image, terms),
        in_shardings=(None, batch_sharding(mesh), None),
        out_shardings=replicated(mesh),
    )


def make_validation(
    config: ModelConfig, test: Source, batch_size: int, mesh: Mesh
) -> Callable[..., dict[str, np.ndarray]]:
    """A function from a model's variables to means over the whole test split, one draw per image.

    The split, its binarisation and the latents' noise are the same at every call.

    Args:
      config: the model's configuration.
      test: the test split.
      batch_size: images at a time, over all devices.
      mesh: the devices.

    Returns: the function. It returns `nelbo`, `reconstruction` and `kl` in nats per image, and
      `group_kl` (groups,), top-down. A second argument has it look at so many images only.
    """
    terms = compiled_together(make_validation_terms(config, mesh), "validation")

    def validate(variables: Any, images: int | None = None) -> dict[str, np.ndarray]:
        index = np.arange(len(test))[:images]

        def compute(first: int, batch: Any) -> Any:
            return terms(variables, batch, jnp.asarray(first // batch_size))

        parts = [part for _, part in over_split(mesh, compute, test, index, batch_size)]
        means = {
            name: np.concatenate([part[name] for part in parts]).mean(0, dtype=np.float64)
            for name in parts[0]
        }
        means["kl"] = means["group_kl"].sum()
        return means | {"nelbo": means["reconstruction"] + means["kl"]}

    return validate


@flax.struct.dataclass
class BoundEstimate:
    """Estimates of log p(x) from K importance weights, in nats.

    bounds: (P, B) log of the mean weight of k draws, for each of P values of k: its mean over the
      ⌊K / k⌋ groups of k draws in turn. Where each k is a multiple of the one before it and divides
      K, they rise with k, whatever the draws are, from the ELBO on.
    elbo: (B,) mean log weight; it is the bound with k = 1.
    means: means over the draws of what came along with the weights.
    """

    bounds: Array
    elbo: Array
    means: Any


def importance_weighted_bound(
    draw: Callable[[Array], tuple[Array, Any]], counts: tuple[int, ...], draws_at_once: int = 1
) -> BoundEstimate:
    """The importance-weighted bound of Burda et al. (2016), with memory that K does not change.

    The logarithms of sums of weights are streamed: no more than `draws_at_once` weights per image
    exist at a time.

    Args:
      draw: from numbers of draws (n,) to log weights log p(x, z) - log q(z | x), (n, B), and any
        tree of arrays (n, B, …) whose means are wanted.
      counts: the values of k, rising; the last one is K.
      draws_at_once: n.

    Raises:
      ValueError: counts are not positive and rising, or `draws_at_once` is not positive.
    """
    rising = all(a < b for a, b in zip((0, *counts), counts, strict=False)) and bool(counts)
    if not rising or draws_at_once < 1:
        raise ValueError(
            f"counts are {counts} and draws_at_once is {draws_at_once}; allowed: rising numbers "
            "from 1 on, and 1 or more"
        )
    numbers = jnp.arange(draws_at_once)
    sizes = jnp.asarray(counts)[:, None]  # of the groups, (P, 1)
    total_draws = counts[-1]

    def add_weight(groups: Any, weight: tuple[Array, Array]) -> tuple[Any, None]:
        log_sum, total = groups  # of the weights of the group in progress; of complete groups
        number, log_weight = weight
        log_sum = jnp.logaddexp(log_sum, log_weight)
        complete = ((number + 1) % sizes == 0) & (number < total_draws)
        total = total + jnp.where(complete, log_sum - jnp.log(sizes), 0.0)
        return (jnp.where(complete, -jnp.inf, log_sum), total), None

    def add(chunk: Array, carry: Any) -> Any:
        groups, sums = carry
        number = chunk * draws_at_once + numbers
        log_weights, others = draw(number)
        groups, _ = lax.scan(add_weight, groups, (number, log_weights))

        def masked_sum(total: Array, x: Array) -> Array:
            mask = (number < total_draws).reshape(-1, *[1] * (x.ndim - 1))
            return total + jnp.where(mask, x, 0.0).sum(0)

        return groups, jax.tree.map(masked_sum, sums, (log_weights, others))

    log_weights, others = jax.eval_shape(draw, numbers)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), (log_weights, others))
    empty = jnp.full((len(counts), *log_weights.shape[1:]), -jnp.inf, log_weights.dtype)
    chunks = -(-total_draws // draws_at_once)
    start = (empty, jnp.zeros_like(empty)), zeros
    (_, totals), sums = lax.fori_loop(0, chunks, add, start)
    elbo, means = jax.tree.map(lambda x: x / total_draws, sums)
    return BoundEstimate(totals / (total_draws // sizes), elbo, means)


@functools.cache
def make_image_likelihood(
    config: ModelConfig, counts: tuple[int, ...], draws_at_once: int = 1, seed: int = 0
) -> Callable[[Any, Array, Array], dict[str, Array]]:
    """A function `(variables, x, index)` to what is known of each image's log-likelihood, in nats.

    x is (B, H, W, C) in [0, 1]; index (B,) numbers the images: with the seed, which may also be the
    function's last argument, it decides their draws. The bottom-up tower runs once, the top-down
    tower once per draw.

    Args:
      config: the model's configuration; the variables are those of a `FoldedNVAE`.
      counts: of draws, see `importance_weighted_bound`.
      draws_at_once: of each image; memory grows with it, but not with the counts.
      seed: of the draws.

    Returns: of the function: `reconstruction` (B,) and `kl_per_channel` (B, groups, Z), means over
      the draws whose sum is the NELBO; `bounds` (B, P), negated, upper bounds of -log p(x); and
      `sampled_nelbo` (B,), which is the bound of one draw.
    """
    model = FoldedNVAE(config)

    def likelihood(
        variables: Any, x: Array, index: Array, seed: int | Array = seed
    ) -> dict[str, Array]:
        def repeat(array: Array, axis: int) -> Array:
            return jnp.concatenate([array] * draws_at_once, axis)

        features: Any = model.apply(variables, x, False, method="bottom_up")
        top, taps = features
        encoded = repeat(top, 0), [repeat(tap, 1) for tap in taps]
        images = repeat(x, 0)

        def draw(numbers: Array) -> tuple[Array, Any]:
            keys = jax.vmap(lambda number: image_keys(seed, index, number))(numbers).reshape(-1)
            output: Any = model.apply(variables, encoded, False, keys, method="top_down")
            log_px = log_likelihood(config, output.logits, images)
            log_weights = log_px + output.log_p - output.log_q
            parts = log_weights, log_px, output.kl_per_image_and_channel
            log_weights, log_px, kl = (
                part.reshape(draws_at_once, -1, *part.shape[1:]) for part in parts
            )
            return log_weights, (log_px, kl)

        estimate = importance_weighted_bound(draw, counts, draws_at_once)
        log_px, kl = estimate.means
        return {
            "reconstruction": -log_px,
            "kl_per_channel": kl,
            "bounds": -estimate.bounds.T,
            "sampled_nelbo": -estimate.elbo,
        }

    return likelihood


def bounds_of_images(
    model: TrainedModel,
    x: np.ndarray,
    draws: int,
    draws_at_once: int,
    seed: int,
    batch_size: int,
) -> np.ndarray:
    """Importance-weighted lower bounds of log p(x), (N,) in nats.

    Args:
      model: the model.
      x: (N, H, W, C) in [0, 1].
      draws: importance weights per image.
      draws_at_once: of each image, see `make_image_likelihood`.
      seed: of the draws.
      batch_size: images at a time on each device.
    """
    arrays = {"x": x, "index": np.arange(len(x), dtype=np.uint32)}
    bounds = model.map(
        _bounds(model.config, draws, draws_at_once),
        arrays,
        batch_size,
        "images scored",
        constants=(np.uint32(seed),),
    )
    return -bounds


@functools.cache
def _bounds(config: ModelConfig, draws: int, draws_at_once: int) -> Callable[..., Array]:
    likelihood = make_image_likelihood(config, (draws,), draws_at_once)

    def bounds(variables: Any, batch: Any, seed: Array) -> Array:
        return likelihood(variables, batch["x"], batch["index"], seed)["bounds"][:, 0]

    return bounds
