"""Regularisers as gradient transformations: they add their gradient, weighted, to the updates.

Both the spectral and the batch-norm regulariser come before the optimiser in a chain and require
the weight λ of the current step as the extra argument `regularization`. Their states keep the value
of the penalty at the last update.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from jax.sharding import Mesh, PartitionSpec

from nvae_jax.model.nvae import kernels_and_factors
from nvae_jax.parallel import state_sharding

FIRST_ROUNDS = 40  # of power iteration, when the vectors are still random
ROUNDS = 4


class SpectralState(NamedTuple):
    """The state of spectral regularisation.

    Attributes:
      updates: () int32, the number of updates so far.
      u: left singular vectors (N, O) per stack of `kernel_matrices`, by the stack's name.
      v: right singular vectors (N, R), likewise.
      penalty: () the sum of the largest singular values at the last update.
    """

    updates: Array
    u: Any
    v: Any
    penalty: Array


class Matrices(NamedTuple):
    """N matrices Wᵀ = kernel · factor, (N, R, O) and (N, 1, O).

    They stay factors because writing the products costs a pass over all weights.
    """

    kernel: Array
    factor: Array


def kernel_matrices(params: Any) -> dict[str, Matrices]:
    """Effective kernels as matrices, those of one shape in one stack.

    A deep model has hundreds of kernels and a few dozen shapes, so that there is little to compile,
    and stacks are long enough to be divided between devices.

    Returns: `{"RxO": matrices}`, with R = k·k·inputs of a kernel and O its output channels, in the
      order of the parameters' paths.
    """
    return {
        name: jax.tree.map(lambda *parts: jnp.concatenate(parts), *matrices)
        for name, matrices in _matrices_by_shape(params).items()
    }


def _matrices_by_shape(params: Any) -> dict[str, list[Matrices]]:
    by_shape: dict[str, list[Matrices]] = {}
    for kernel, factor in kernels_and_factors(params).values():
        rows, columns = math.prod(kernel.shape[-4:-1]), kernel.shape[-1]
        matrices = Matrices(kernel.reshape(-1, rows, columns), factor.reshape(-1, 1, columns))
        by_shape.setdefault(f"{rows}x{columns}", []).append(matrices)
    return by_shape


def power_iteration(
    matrices: dict[str, Matrices], u: Any, v: Any, rounds: Array | int, mesh: Mesh | None = None
) -> tuple[Any, Any]:
    """v ← normalise(Wᵀu), u ← normalise(Wv), `rounds` times, for every stack.

    Args:
      matrices: stacks by name.
      u: (N, O) of each.
      v: (N, R) of each; what it holds matters only if there are no rounds.
      rounds: the number of iterations.
      mesh: devices that share every stack; None: each device iterates whole stacks.
    """

    def iterate(_, vectors):
        u, _ = vectors
        v = {name: _normalize(_project_back(m, u[name])) for name, m in matrices.items()}
        u = {name: _normalize(_project(m, v[name])) for name, m in matrices.items()}
        return u, v

    if mesh is None or mesh.size == 1:
        return lax.fori_loop(0, rounds, iterate, (u, v))
    divided, whole = PartitionSpec(mesh.axis_names), PartitionSpec()
    share: Any = jax.shard_map(
        power_iteration,
        mesh=mesh,
        in_specs=(divided, divided, divided, whole),
        out_specs=divided,
    )

    def as_in_the_state(tree: Any) -> Any:
        # Or the compiler would divide all that depends on the vectors, gradients and moments
        # among it, as the iteration is divided, and gather every parameter after every update.
        return lax.with_sharding_constraint(tree, state_sharding(mesh, tree))

    inputs = as_in_the_state((matrices, u, v))
    filled = jax.tree.map(lambda x: _fill_up(x, mesh.size), inputs)
    longer = share(*filled, jnp.asarray(rounds))
    return as_in_the_state(jax.tree.map(lambda x, start: x[: len(start)], longer, (u, v)))


def _fill_up(stack: Array, multiple: int) -> Array:
    """Zeros behind a stack (N, …), up to a length that `multiple` divides."""
    return jnp.pad(stack, ((0, -len(stack) % multiple), *[(0, 0)] * (stack.ndim - 1)))


def _project(matrices: Matrices, v: Array) -> Array:
    """Wv of each matrix: (N, O)."""
    return jnp.einsum("nro,nr->no", matrices.kernel, v) * matrices.factor[:, 0]


def _project_back(matrices: Matrices, u: Array) -> Array:
    """Wᵀu of each matrix: (N, R)."""
    return jnp.einsum("nro,no->nr", matrices.kernel, matrices.factor[:, 0] * u)


def _normalize(x: Array) -> Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-3)


def spectral_penalty(params: Any, u: Any, v: Any) -> Array:
    """Σ uᵀWv over all convolutions: the sum of largest singular values, at converged vectors."""
    penalty = jnp.zeros(())
    for name, matrices in _matrices_by_shape(params).items():
        # Kernel by kernel: a stack's gradient would be one more array of all weights, to be sliced.
        ends = np.cumsum([len(m.kernel) for m in matrices])[:-1]
        parts = zip(matrices, jnp.split(u[name], ends), jnp.split(v[name], ends), strict=True)
        penalty += sum(jnp.sum(u * _project(m, v)) for m, u, v in parts)
    return penalty


def spectral_regularization(
    key: Array, mesh: Mesh | None = None
) -> optax.GradientTransformationExtraArgs:
    """Adds λ · ∂/∂params of the sum of all convolutions' largest singular values (NVAE, §3.2).

    The singular vectors persist in the state and follow the kernels by a few rounds of power
    iteration per update; they carry no gradient themselves. The gradient passes through the weight
    normalisation.

    Args:
      key: a PRNG key for the random vectors that the iteration starts from.
      mesh: devices that share the power iteration; None: each repeats it.
    """

    def init(params):
        matrices = jax.eval_shape(kernel_matrices, params)

        def start(key, axis):
            shapes = [(len(m.kernel), m.kernel.shape[axis]) for m in matrices.values()]
            ends = np.cumsum([math.prod(shape) for shape in shapes])
            # One draw for all: XLA's CPU backend compiles a draw for each ten times as long.
            draws = jnp.split(jax.random.normal(key, (int(ends[-1]),)), ends[:-1])
            vectors = [_normalize(x.reshape(s)) for x, s in zip(draws, shapes, strict=True)]
            return dict(zip(matrices, vectors, strict=True))

        key_u, key_v = jax.random.split(key)
        return SpectralState(
            jnp.zeros((), jnp.int32), start(key_u, -1), start(key_v, -2), jnp.zeros(())
        )

    def update(updates, state, params=None, *, regularization, **extra_args):
        del extra_args
        matrices = lax.stop_gradient(kernel_matrices(params))
        rounds = jnp.where(state.updates == 0, FIRST_ROUNDS, ROUNDS)
        u, v = power_iteration(matrices, state.u, state.v, rounds, mesh)
        penalty, gradient = jax.value_and_grad(spectral_penalty)(params, u, v)
        updates = jax.tree.map(lambda g, r: g + regularization * r, updates, gradient)
        return updates, SpectralState(optax.safe_increment(state.updates), u, v, penalty)

    return optax.GradientTransformationExtraArgs(init, update)


class BatchNormState(NamedTuple):
    """The state of batch-norm regularisation: `penalty`, () Σ max|scale| at the last update."""

    penalty: Array


def batch_norm_penalty(params: Any) -> Array:
    """Σ over batch-norm layers of the largest |scale|."""
    flat = flax.traverse_util.flatten_dict(params)
    scales = [value for path, value in flat.items() if path[-1] == "scale"]
    return sum((jnp.abs(scale).max(-1).sum() for scale in scales), start=jnp.zeros(()))


def batch_norm_regularization() -> optax.GradientTransformationExtraArgs:
    """Adds λ · ∂/∂params of `batch_norm_penalty` (NVAE, appendix A)."""

    def init(params):
        del params
        return BatchNormState(jnp.zeros(()))

    def update(updates, state, params=None, *, regularization, **extra_args):
        del state, extra_args
        penalty, gradient = jax.value_and_grad(batch_norm_penalty)(params)
        updates = jax.tree.map(lambda g, r: g + regularization * r, updates, gradient)
        return updates, BatchNormState(penalty)

    return optax.GradientTransformationExtraArgs(init, update)
