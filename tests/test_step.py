"""The train step of small models: what it must do, whatever the devices."""

import dataclasses
import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_step import (
    EPOCH_STEPS,
    SMALL,
    STEPS,
    TRAINING,
    adamax,
    distance,
    make_images,
    make_state,
)

from nvae_jax import parallel
from nvae_jax.parallel import batch_sharding, make_mesh, replicated, shard_batch, state_sharding
from nvae_jax.training.guard import STRETCH
from nvae_jax.training.optimizer import make_optimizer
from nvae_jax.training.state import init_state
from nvae_jax.training.step import make_train_step


@pytest.fixture(scope="module")
def images():
    return make_images()


@pytest.fixture(scope="module")
def compiled():
    """The step, and a list with an entry for every time that it was traced."""
    train_step, traces = make_train_step(SMALL, TRAINING, EPOCH_STEPS), []

    @jax.jit
    def step(state, x):
        traces.append(1)
        return train_step(state, x)

    return step, traces


@pytest.fixture(scope="module")
def run(compiled, images):
    """The states and metrics of a short run on one device, and how often the step was traced."""
    step, traces = compiled
    states, metrics = [make_state(SMALL)], []
    for _ in range(STEPS):
        state, values = step(states[-1], images)
        states.append(state)
        metrics.append(values)
    return states, metrics, len(traces)


def test_init_state_is_what_the_step_takes(images):
    optimizer = make_optimizer(TRAINING, EPOCH_STEPS)
    init = functools.partial(init_state, SMALL, optimizer, np.uint32(0))
    averaged = jax.eval_shape(lambda x: init(x, TRAINING), images)
    chex.assert_trees_all_equal_shapes_and_dtypes(averaged, make_state(SMALL))
    plain = jax.eval_shape(init, images)
    assert plain.ema_params is None
    assert plain.eval_variables["params"] is plain.params
    assert averaged.eval_variables["params"] is averaged.ema_params
    assert plain.ema_batch_stats is None
    assert plain.eval_variables["batch_stats"] is plain.batch_stats
    assert averaged.eval_variables["batch_stats"] is averaged.ema_batch_stats


def test_the_loss_of_a_fixed_batch_falls(run):
    states, metrics, _ = run
    assert metrics[-1]["nelbo"] < 0.8 * metrics[0]["nelbo"]
    chex.assert_tree_all_finite((states, metrics))


def test_one_compilation_serves_all_steps(run):
    states, _, traces = run
    assert traces == 1
    for number, state in enumerate(states):
        assert state.step == number
        chex.assert_trees_all_equal_shapes_and_dtypes(state, states[0])


def test_metrics_keep_the_bound_apart_from_what_is_minimised(run):
    states, metrics, _ = run
    close = functools.partial(pytest.approx, rel=1e-5)
    for step, values in enumerate(metrics):
        assert values["nelbo"] == close(float(values["reconstruction"] + values["kl"]))
        assert values["kl"] == close(float(values["group_kl"].sum()))
        # The warm-up lasts 30 of 100 steps and starts after 0.01; λ goes from 1 to 0.1 along it.
        beta = max((step - 0.01) / 30, 1e-4)
        assert values["kl_weight"] == close(beta)
        assert values["regularization"] == close(0.1**beta)
        weighted = beta * (values["group_balance"] * values["group_kl"]).sum()
        penalties = values["spectral_penalty"] + values["batch_norm_penalty"]
        loss = values["reconstruction"] + weighted + 0.1**beta * penalties
        assert values["loss"] == close(float(loss))
        cosine = 1.0 if step < EPOCH_STEPS else (1 + np.cos(np.pi / 9)) / 2
        assert values["learning_rate"] == close(1e-4 + (1e-2 - 1e-4) * cosine)
        assert values["gradient_norm"] > 0
    # At first the largest scale of every batch-norm layer is 1.
    leaves = jax.tree_util.tree_leaves_with_path(states[0].params)
    layers = [x.size // x.shape[-1] for path, x in leaves if path[-1].key == "scale"]
    assert metrics[0]["batch_norm_penalty"] == sum(layers)


@pytest.mark.parametrize("of", ["params", "batch_stats"])
def test_averages_follow_what_they_average(run, of):
    states, _, _ = run
    for before, after in itertools.pairwise(states[:4]):
        expected = jax.tree.map(
            lambda average, new: 0.9 * average + 0.1 * new,
            getattr(before, f"ema_{of}"),
            getattr(after, of),
        )
        chex.assert_trees_all_close(getattr(after, f"ema_{of}"), expected, rtol=1e-5, atol=1e-6)
    behind = jax.tree.map(lambda a, b: (a != b).any(), expected, getattr(after, of))
    assert any(jax.tree.leaves(behind))


def test_an_update_that_is_not_finite_changes_nothing_but_the_count(run, compiled, images):
    """Whichever array it comes from: every parameter, moment, singular vector and statistic."""
    # Nothing reads these, because every update finds them anew.
    unread = (".health", ".opt_state['batch_norm']", ".opt_state['spectral'].v", "penalty")
    (states, _, _), (step, _) = run, compiled
    start = states[1]
    leaves, structure = jax.tree.flatten(start)
    kept = ("step", "health")
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(start)]
    tried = 0
    for number, (path, leaf) in enumerate(zip(paths, leaves, strict=True)):
        if leaf.dtype != jnp.float32 or any(name in path for name in unread):
            continue
        value = (jnp.inf, jnp.nan)[number % 2]
        broken = jax.tree.unflatten(
            structure,
            [*leaves[:number], leaf.at[(0,) * leaf.ndim].set(value), *leaves[number + 1 :]],
        )
        after, metrics = step(broken, images)
        assert metrics["skipped"] == 1, path
        assert after.health.skipped == start.health.skipped + 1
        assert after.step == start.step + 1
        for field in dataclasses.fields(start):
            if field.name not in kept:
                chex.assert_trees_all_equal(getattr(after, field.name), getattr(broken, field.name))
        tried += 1
    assert tried > 100
    for wrong in (jnp.full_like(images, jnp.nan), 255 * images, images - 1):
        after, metrics = step(start, wrong)
        assert metrics["skipped"] == 1
        chex.assert_trees_all_equal(after.params, start.params)
    again, metrics = step(after, images)
    assert (metrics["skipped"], again.health.skipped) == (0, 0)
    assert all((a != b).any() for a, b in pairs(again.params, start.params))


def pairs(*trees):
    """The leaves of trees, side by side."""
    return zip(*map(jax.tree.leaves, trees), strict=True)


def test_a_run_that_went_back_learns_more_slowly_for_a_while(run, compiled, images):
    (states, metrics, _), (step, _) = run, compiled
    eased = states[1].replace(health=states[1].health.gone_back(1, 3, 2))
    after, values = step(eased, images)
    assert values["learning_rate"] == metrics[1]["learning_rate"] / 4
    assert values["regularization"] == metrics[1]["regularization"] * 4
    assert values["nelbo"] == metrics[1]["nelbo"]
    assert (after.health.recent, after.health.rollbacks) == (2, 3)
    long_ago = eased.replace(health=eased.health.replace(since=jnp.int32(2 - STRETCH)))
    after, _ = step(long_ago, images)
    assert (after.health.recent, after.health.rollbacks) == (0, 3)


@pytest.mark.parametrize(("devices", "shards"), [(2, 1), (4, 2), (8, 1), (8, 4)])
def test_many_devices_make_the_same_updates_as_one(run, images, monkeypatch, devices, shards):
    monkeypatch.setattr(parallel, "SMALLEST_SHARDED", 64)
    states, metrics, _ = run
    mesh = make_mesh(jax.devices()[:devices], shards)
    start = jax.tree.map(np.array, make_state(SMALL))
    on_state = state_sharding(mesh, start)
    step = jax.jit(
        make_train_step(SMALL, TRAINING, EPOCH_STEPS, mesh),
        in_shardings=(on_state, batch_sharding(mesh)),
        out_shardings=(on_state, replicated(mesh)),
        donate_argnums=0,
    )
    state = jax.device_put(start, on_state)
    if shards > 1:
        divided = [x for x in jax.tree.leaves(adamax(state)) if not x.is_fully_replicated]
        assert len(divided) >= 20
        assert all(x.addressable_shards[0].data.size * shards == x.size for x in divided)
    for number in range(3):
        state, values = step(state, shard_batch(mesh, images))
        chex.assert_trees_all_close(values, metrics[number], rtol=1e-5, atol=1e-6)
        if number == 0:
            assert distance(state.batch_stats, states[1].batch_stats) < 1e-6
    # Both moments, and the updates where there is a gradient: a bias before a batch norm has none,
    # and moves by its rounding.
    assert distance(adamax(state).mu, adamax(states[3]).mu) < 1e-5
    assert distance(adamax(state).nu, adamax(states[3]).nu) < 1e-5
    moved = jax.tree.map(lambda nu: np.asarray(nu) > 0.1, adamax(states[3]).nu)
    assert np.mean(np.concatenate([x.ravel() for x in jax.tree.leaves(moved)])) > 0.99
    moves = [
        jax.tree.map(lambda a, b, m: jnp.where(m, a - b, 0), s.params, states[0].params, moved)
        for s in (state, states[3])
    ]
    assert distance(*moves) < 1e-4
