"""The regularisers, held against singular value decompositions and against their own definition."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nvae_jax.model.nvae import effective_kernels
from nvae_jax.parallel import make_mesh, replicated
from nvae_jax.training.regularizers import (
    FIRST_ROUNDS,
    ROUNDS,
    Matrices,
    batch_norm_penalty,
    batch_norm_regularization,
    kernel_matrices,
    power_iteration,
    spectral_regularization,
)

LAMBDA = 0.3


@pytest.fixture(scope="module")
def params():
    """One convolution of every kind that a model has, and layers that are none."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    def flow_cell(groups):
        shapes = {"strict_conv": (3, 3, 2, 12), "depthwise_conv": (5, 5, 1, 12)}
        shapes["head"] = (1, 1, 12, 2)
        return {
            name: {"kernel": normal(groups, *shape), "log_gain": normal(groups, shape[-1])}
            for name, shape in shapes.items()
        }

    return {
        "encoder": {
            "stem": {"kernel": normal(3, 3, 3, 8), "log_gain": normal(8), "bias": normal(8)},
            "cell": {
                "norm_in": {"scale": normal(8), "bias": normal(8)},
                "expand": {"kernel": normal(1, 1, 8, 24)},
                "spatial": {"kernel": normal(5, 5, 1, 24)},
                "squeeze": {"kernel": normal(8, 4), "bias": normal(4)},
                "norm_out": {"scale": normal(8), "bias": normal(8)},
            },
        },
        "decoder": {
            "prior_features": normal(2, 2, 8),
            "scale_0": {
                "combine": {"kernel": normal(3, 1, 1, 10, 8), "log_gain": normal(3, 8)},
                "norm": {"scale": normal(3, 8), "bias": normal(3, 8)},
                "flow_0": {"forward": flow_cell(3), "mirrored": flow_cell(3)},
            },
        },
    }


def products(params):
    """The transposes of the matrices themselves: {"RxO": (N, R, O)}."""
    return {name: m.kernel * m.factor for name, m in kernel_matrices(params).items()}


def is_near(tree, other, tolerance=1e-6):
    chex.assert_trees_all_close(tree, other, rtol=tolerance, atol=tolerance)


def zeros_like(tree):
    return jax.tree.map(jnp.zeros_like, tree)


def perturb(tree, seed, size=0.01):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x * (1 + size * rng.normal(size=x.shape).astype("f")), tree)


@pytest.fixture(scope="module")
def transform():
    return spectral_regularization(jax.random.key(0))


@pytest.fixture(scope="module")
def update(transform):
    return jax.jit(functools.partial(transform.update, regularization=LAMBDA))


def test_the_matrices_are_the_convolutions_and_nothing_else(params):
    stacks = {name: matrices.shape for name, matrices in products(params).items()}
    assert stacks == {
        "27x8": (1, 27, 8),  # encoder/stem
        "8x24": (1, 8, 24),  # encoder/cell/expand
        "25x24": (1, 25, 24),  # encoder/cell/spatial
        "10x8": (3, 10, 8),  # decoder/scale_0/combine
        # decoder/scale_0/flow_0, forward and mirrored
        "18x12": (6, 18, 12),
        "25x12": (6, 25, 12),
        "12x2": (6, 12, 2),
    }
    forward = params["decoder"]["scale_0"]["flow_0"]["forward"]["head"]["kernel"]
    assert forward.shape == (3, 1, 1, 12, 2)
    scaled = jax.tree.map(lambda x: x, params)
    scaled["decoder"]["scale_0"]["flow_0"]["forward"]["head"]["log_gain"] += jnp.log(2.0)
    before, after = (products(p)["12x2"] for p in (params, scaled))
    np.testing.assert_allclose(after[:3], 2 * before[:3], rtol=1e-6)
    np.testing.assert_array_equal(after[3:], before[3:])


def test_stacks_have_the_order_of_the_tree_of_parameters():
    # Saved singular vectors go by it.
    kernels = jax.random.normal(jax.random.key(0), (3, 3, 1, 1, 2, 2))
    names = ("scale_2_up", "scale_10", "scale_2")  # which the tree sorts
    params = {
        name: {"conv": {"kernel": kernel}} for name, kernel in zip(names, kernels, strict=True)
    }
    (stack,) = products(params).values()
    leaves = jnp.concatenate([x.reshape(-1, 2, 2) for x in jax.tree.leaves(params)])
    np.testing.assert_array_equal(stack, leaves)


def test_a_flows_masks_are_part_of_its_matrices(params):
    # Mirrored in space, and strict where they must be.
    kernels = effective_kernels(params)["decoder"]["scale_0"]["flow_0"]
    forward, mirrored = (kernels[cell]["strict_conv"] for cell in ("forward", "mirrored"))
    assert (forward[:, 2] == 0).all()
    assert (forward[:, 1, 2] == 0).all()
    assert (mirrored[:, 0] == 0).all()
    assert (mirrored[:, 1, 0] == 0).all()
    assert (kernels["forward"]["depthwise_conv"][:, 2, 2] != 0).all()


def test_weight_norm_enters_the_matrices(params):
    stem = params["encoder"]["stem"]
    scaled = {"stem": stem | {"kernel": 7 * stem["kernel"]}}
    is_near(products(scaled), products({"stem": stem}), 1e-5)
    louder = {"stem": stem | {"log_gain": stem["log_gain"] + jnp.log(2.0)}}
    doubled = jax.tree.map(lambda m: 2 * m, products({"stem": stem}))
    is_near(products(louder), doubled)


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
    # Power iteration comes from below, and four rounds an update keep it close.
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


def test_batch_norm_penalty_is_the_largest_scale_of_every_layer(params):
    scales = [params["encoder"]["cell"][name]["scale"] for name in ("norm_in", "norm_out")]
    scales += list(params["decoder"]["scale_0"]["norm"]["scale"])
    expected = sum(np.abs(scale).max() for scale in scales)
    np.testing.assert_allclose(batch_norm_penalty(params), expected, rtol=1e-6)
    assert batch_norm_penalty({"conv": {"kernel": jnp.ones((1, 1, 2, 2))}}) == 0


def test_batch_norm_regularization_adds_its_gradient(params):
    transform = batch_norm_regularization()
    gradient = jax.tree.map(jnp.sin, params)
    update = jax.jit(functools.partial(transform.update, regularization=LAMBDA))
    updates, state = update(gradient, transform.init(params), params)
    np.testing.assert_allclose(state.penalty, batch_norm_penalty(params), rtol=1e-6)
    added = jax.tree.map(jnp.subtract, updates, gradient)
    stacked = params["decoder"]["scale_0"]["norm"]["scale"]
    largest = np.abs(stacked) == np.abs(stacked).max(-1, keepdims=True)
    expected = zeros_like(params)
    expected["decoder"]["scale_0"]["norm"]["scale"] = LAMBDA * np.sign(stacked) * largest
    for name in ("norm_in", "norm_out"):
        scale = params["encoder"]["cell"][name]["scale"]
        peak = np.abs(scale) == np.abs(scale).max()
        expected["encoder"]["cell"][name]["scale"] = LAMBDA * np.sign(scale) * peak
    is_near(added, expected)


def test_tied_scales_share_the_gradient():
    """At the start all scales are 1; each of n gets 1/n."""
    params = {"norm": {"scale": jnp.array([1.0, -1.0, 0.5, 1.0]), "bias": jnp.zeros(4)}}
    updates, _ = batch_norm_regularization().update(
        zeros_like(params), None, params, regularization=3.0
    )
    np.testing.assert_allclose(updates["norm"]["scale"], [1.0, -1.0, 0.0, 1.0], rtol=1e-6)
    np.testing.assert_array_equal(updates["norm"]["bias"], 0)


@pytest.mark.parametrize(
    "make", [lambda: spectral_regularization(jax.random.key(0)), batch_norm_regularization]
)
def test_contract(params, make):
    """One compilation for all steps and weights; dtypes and structure stay; state is donated."""
    transform = make()
    traces = []

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, regularization):
        traces.append(1)
        zeros = zeros_like(params)
        updates, state = transform.update(zeros, state, params, regularization=regularization)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.copy, params)
    state = jax.jit(transform.init)(params)
    structure = jax.tree.map(lambda x: (x.shape, x.dtype), (params, state))
    for weight in (0.1, 0.2, 0.3):
        previous = params
        params, state = step(params, state, jnp.float32(weight))
        assert jax.tree.leaves(previous)[0].is_deleted()
    assert len(traces) == 1
    assert jax.tree.map(lambda x: (x.shape, x.dtype), (params, state)) == structure
