"""The spectral regulariser, held against singular value decompositions and its own definition."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layers import LAMBDA, is_near, make_params, products, zeros_like

from nvae_jax.parallel import make_mesh, replicated
from nvae_jax.training.regularizers import (
    FIRST_ROUNDS,
    ROUNDS,
    Matrices,
    kernel_matrices,
    power_iteration,
    spectral_regularization,
)


@pytest.fixture(scope="module")
def params():
    return make_params()


def perturb(tree, seed, size=0.01):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x * (1 + size * rng.normal(size=x.shape).astype("f")), tree)


@pytest.fixture(scope="module")
def transform():
    return spectral_regularization(jax.random.key(0))


@pytest.fixture(scope="module")
def update(transform):
    return jax.jit(functools.partial(transform.update, regularization=LAMBDA))


def test_converges_to_the_largest_singular_values(params, transform, update):
    state = jax.jit(transform.init)(params)
    for _ in range(150):
        _, state = update(zeros_like(params), state, params)

    def check(matrix, u, v):
        left, values, right = np.linalg.svd(np.asarray(matrix))  # of the transpose of W
        sigma = np.einsum("...ro,...r,...o->...", matrix, v, u)
        np.testing.assert_allclose(sigma, values[..., 0], rtol=1e-4)
        # A singular vector is known up to its sign.
        for ours, exact in ((v, left[..., 0]), (u, right[..., 0, :])):
            np.testing.assert_allclose(np.abs((ours * exact).sum(-1)), 1, rtol=1e-3)
        return values[..., 0].sum()

    sigmas = jax.tree.map(check, products(params), state.u, state.v)
    np.testing.assert_allclose(state.penalty, sum(jax.tree.leaves(sigmas)), rtol=1e-4)


def test_follows_kernels_that_change(params, transform, update):
    state = jax.jit(transform.init)(params)
    for step in range(30):
        moved = {**params, "encoder": perturb(params["encoder"], step)}
        _, state = update(zeros_like(params), state, moved)
    matrices = jax.tree.leaves(products(moved))
    exact = sum(np.linalg.svd(np.asarray(m), compute_uv=False)[..., 0].sum() for m in matrices)
    # Power iteration comes from below, and four rounds per update keep it close.
    assert 0.99 * exact < state.penalty < (1 + 1e-6) * exact


@pytest.mark.parametrize("rounds", [0, 1, 5])
def test_a_round_is_the_textbook_one(rounds):
    rng = np.random.default_rng(1)
    w, u = rng.normal(size=(4, 6)).astype(np.float32), rng.normal(size=4).astype(np.float32)
    v = np.zeros(6, np.float32)
    factor = rng.uniform(1, 2, size=4).astype(np.float32)  # of each row of W
    matrices = {"w": Matrices((w.T / factor)[None], factor[None, None])}
    ours = power_iteration(matrices, {"w": u[None]}, {"w": v[None]}, rounds)
    for _ in range(rounds):
        v = w.T @ u / np.linalg.norm(w.T @ u)
        u = w @ v / np.linalg.norm(w @ v)
    is_near(ours, ({"w": u[None]}, {"w": v[None]}))


@pytest.mark.parametrize("rounds", [0, 3])
def test_devices_share_the_iteration_of_stacks_of_any_length(rounds):
    mesh, rng = make_mesh(parameter_shards=2), np.random.default_rng(2)
    assert mesh.size == 8

    def stacks(*shapes):
        arrays = [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes]
        return dict(zip("abc", arrays, strict=True))

    kernels = stacks((1, 6, 4), (8, 3, 5), (11, 7, 2))
    factors = stacks((1, 1, 4), (8, 1, 5), (11, 1, 2))
    matrices = {name: Matrices(kernel, factors[name]) for name, kernel in kernels.items()}
    u, v = stacks((1, 4), (8, 5), (11, 2)), stacks((1, 6), (8, 3), (11, 7))
    shared = jax.jit(functools.partial(power_iteration, mesh=mesh))
    ours, alone = shared(matrices, u, v, rounds), power_iteration(matrices, u, v, rounds)
    chex.assert_trees_all_close(ours, alone, rtol=1e-6, atol=1e-6)
    # Each device has an eighth of the work: two of the eleven matrices, the longest stack.
    program = shared.lower(matrices, u, v, rounds).compile().as_text()
    assert "f32[2,7,2]" in program


def test_what_depends_on_the_vectors_is_not_divided_with_the_iteration():
    mesh, rng = make_mesh(), np.random.default_rng(3)
    kernel = jnp.asarray(rng.normal(size=(8, 6, 4)), jnp.float32)
    matrices = {"a": Matrices(kernel, jnp.ones((8, 1, 4)))}
    u, v = {"a": jnp.ones((8, 4))}, {"a": jnp.ones((8, 6))}

    @jax.jit
    def outer(matrices, u, v):
        u, v = power_iteration(matrices, u, v, 1, mesh)
        return u["a"][:, None, :] * v["a"][:, :, None]

    arguments = jax.device_put((matrices, u, v), replicated(mesh))
    assert outer(*arguments).sharding.is_fully_replicated


def test_a_zero_kernel_has_a_finite_penalty_and_gradient(transform):
    params = {"conv": {"kernel": jnp.zeros((3, 3, 4, 4)), "log_gain": jnp.zeros(4)}}
    update = jax.jit(functools.partial(transform.update, regularization=1.0))
    updates, state = update(params, transform.init(params), params)
    assert state.penalty == 0
    chex.assert_tree_all_finite((updates, state))


def test_the_first_update_iterates_longer(params, transform, update):
    first = transform.init(params)
    assert first.updates == 0
    _, second = update(zeros_like(params), first, params)
    _, third = update(zeros_like(params), second, params)
    assert (second.updates, third.updates) == (1, 2)
    matrices = kernel_matrices(params)
    is_near((second.u, second.v), power_iteration(matrices, first.u, first.v, FIRST_ROUNDS), 1e-5)
    is_near((third.u, third.v), power_iteration(matrices, second.u, second.v, ROUNDS), 1e-5)
    assert (FIRST_ROUNDS, ROUNDS) == (40, 4)


def test_starts_from_unit_vectors_that_depend_on_the_key(params, transform):
    state = transform.init(params)
    for vectors in jax.tree.leaves((state.u, state.v)):
        np.testing.assert_allclose(jnp.linalg.norm(vectors, axis=-1), 1, rtol=1e-5)
    chex.assert_trees_all_equal(state, transform.init(params))
    other = spectral_regularization(jax.random.key(1)).init(params)
    for one, another in zip(*map(jax.tree.leaves, (state.u, other.u)), strict=True):
        assert (one != another).all()


def test_adds_the_gradient_of_the_weighted_penalty(params, transform, update):
    """As if λ · penalty had been part of the loss, with the vectors held fixed."""
    state = transform.init(params)
    gradient = jax.tree.map(jnp.sin, params)
    updates, new = update(gradient, state, params)

    def loss(params):
        inner = sum(jax.tree.leaves(jax.tree.map(lambda p: -jnp.cos(p).sum(), params)))
        sigmas = {
            name: jnp.einsum("nro,nr,no->", m, new.v[name], new.u[name])
            for name, m in products(params).items()
        }
        return inner + LAMBDA * sum(sigmas.values())

    value, expected = jax.jit(jax.value_and_grad(loss))(params)
    is_near(updates, expected, 1e-5)
    chex.assert_trees_all_equal_dtypes(updates, params)
    inner = sum(jax.tree.leaves(jax.tree.map(lambda p: -jnp.cos(p).sum(), params)))
    np.testing.assert_allclose(new.penalty, (value - inner) / LAMBDA, rtol=1e-4)
    # What is no convolution stays as it came.
    for path in (("encoder", "stem", "bias"), ("decoder", "prior_features")):
        ours, came = (functools.reduce(dict.get, path, tree) for tree in (updates, gradient))
        np.testing.assert_array_equal(ours, came)


def test_the_gradient_at_converged_vectors_is_that_of_the_singular_value(transform):
    kernel = jax.random.normal(jax.random.key(2), (3, 3, 2, 4))
    params = {"conv": {"kernel": kernel}}
    update = jax.jit(functools.partial(transform.update, regularization=1.0))
    state = transform.init(params)
    for _ in range(50):
        updates, state = update(zeros_like(params), state, params)

    def largest(kernel):
        return jnp.linalg.svd(kernel.reshape(-1, 4), compute_uv=False)[0]

    is_near(updates["conv"]["kernel"], jax.grad(largest)(kernel), 1e-3)


def test_the_vectors_carry_no_gradient(params, transform):
    state = transform.init(params)

    def vectors(params):
        _, new = transform.update(zeros_like(params), state, params, regularization=1.0)
        return sum(x.sum() for x in jax.tree.leaves((new.u, new.v)))

    for gradient in jax.tree.leaves(jax.jit(jax.grad(vectors))(params)):
        np.testing.assert_array_equal(gradient, 0)
