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
from nvae_jax.errors import require
from nvae_jax.evaluation.batches import on_pixels, over_split
from nvae_jax.evaluation.trained import TrainedModel, image_keys
from nvae_jax.model import mixture
from nvae_jax.model.distributions import errors_of_classes, reconstruction_error
from nvae_jax.model.families import make_folded_network, make_network
from nvae_jax.model.vae import VAEConfig, no_noise
from nvae_jax.parallel import batch_sharding, replicated

if TYPE_CHECKING:
    from nvae_jax.data.sources import Source


def make_validation_terms(
    config: VAEConfig, mesh: Mesh, has_posterior: bool = True
) -> Callable[..., dict[str, Array]]:
    """A compiled function `(variables, batch, number)` to the terms of the NELBO of test images.

    Args:
      config: the model's configuration.
      mesh: the devices.
      has_posterior: whether codes are drawn, see `Objective`; else they are the means.

    Returns: the function. Its batch is one of `eval_batches`, and the batch's number decides the
      draws. It returns `reconstruction` (B,), see `reconstruction_error`, and, of a posterior,
      `group_kl` (B, groups) in nats; one draw per image.
    """
    model = make_network(config)

    def terms(variables: Any, x: Array, index: Array, number: Array) -> dict[str, Array]:
        del index
        key = jax.random.fold_in(jax.random.key(0), number)
        noise = None if has_posterior else no_noise(config, len(x))
        output: Any = model.apply(variables, x, False, noise, rngs={"sample": key})
        error = {"reconstruction": reconstruction_error(config, output, x)}
        return error | ({"group_kl": output.kl} if has_posterior else {})

    return jit_on(
        mesh,
        on_pixels(config.image, terms),
        in_shardings=(None, batch_sharding(mesh), None),
        out_shardings=replicated(mesh),
    )


def make_validation(
    config: VAEConfig, test: Source, batch_size: int, mesh: Mesh, has_posterior: bool = True
) -> Callable[..., dict[str, np.ndarray]]:
    """A function from a model's variables to means over the whole test split, one draw per image.

    The split, its binarisation and the latents' noise are the same at every call.

    Args:
      config: the model's configuration.
      test: the test split.
      batch_size: images at a time, over all devices.
      mesh: the devices.
      has_posterior: see `make_validation_terms`.

    Returns: the function. It returns `reconstruction`; of a posterior, `kl` in nats per image and
      `group_kl` (groups,), top-down; and, if the model's head is a likelihood, too, `nelbo`. A
      second argument has it look at so many images only.
    """
    terms = compiled_together(make_validation_terms(config, mesh, has_posterior), "validation")

    def validate(variables: Any, images: int | None = None) -> dict[str, np.ndarray]:
        index = np.arange(len(test))[:images]

        def compute(first: int, batch: Any) -> Any:
            return terms(variables, batch, jnp.asarray(first // batch_size))

        parts = [part for _, part in over_split(mesh, compute, test, index, batch_size)]
        means = {
            name: np.concatenate([part[name] for part in parts]).mean(0, dtype=np.float64)
            for name in parts[0]
        }
        if has_posterior:
            means["kl"] = means["group_kl"].sum()
            if config.has_likelihood:
                means["nelbo"] = means["reconstruction"] + means["kl"]
        return means

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


def require_bound(model: TrainedModel) -> None:
    """Checks that there is a bound of the likelihood.

    Raises:
      ConfigError: there is none; the message says why.
    """
    model_, objective = model.run.model, model.run.objective
    allowed = "distributions of pixels, or there is no likelihood to bound"
    require("model.likelihood", model_.likelihood, model_.has_likelihood, allowed)
    allowed = "objectives whose codes have a density given the image, or there is no bound"
    require("objective.name", objective.name, objective.has_posterior, allowed)


@functools.cache
def make_image_likelihood(
    config: VAEConfig, counts: tuple[int, ...], draws_at_once: int = 1, seed: int = 0
) -> Callable[..., dict[str, Array]]:
    """A function `(variables, x, index)` to what is known of each image's log-likelihood, in nats.

    x is (B, H, W, C) in [0, 1]; index (B,) numbers the images: with the seed, which may also be the
    function's last argument, it decides their draws. The bottom-up tower runs once, the top-down
    tower once per draw.

    Args:
      config: the model's configuration; the variables are those that `fold` returns.
      counts: of draws, see `importance_weighted_bound`.
      draws_at_once: of each image; memory grows with it, but not with the counts.
      seed: of the draws.

    Returns: of the function: `reconstruction` (B,) and `kl_per_channel` (B, groups, Z), means over
      the draws whose sum is the NELBO; `bounds` (B, P), negated, upper bounds of -log p(x); and
      `sampled_nelbo` (B,), which is the bound of one draw.
    """
    model = make_folded_network(config)

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
            log_px = -errors_of_classes(config, output, images)
            marginal = mixture.marginal(output.class_logits, log_px)
            log_weights = marginal + output.log_p - output.log_q
            log_px = mixture.expected(output.class_logits, log_px)
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

    Raises:
      ConfigError: there is no bound.
    """
    require_bound(model)
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
def _bounds(config: VAEConfig, draws: int, draws_at_once: int) -> Callable[..., Array]:
    likelihood = make_image_likelihood(config, (draws,), draws_at_once)

    def bounds(variables: Any, batch: Any, seed: Array) -> Array:
        return likelihood(variables, batch["x"], batch["index"], seed)["bounds"][:, 0]

    return bounds
