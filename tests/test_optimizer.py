"""Settings, learning rate and the optimiser's chain, against the official numbers and by hand."""

import dataclasses
import functools

import goldens
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from goldens import assert_close

from nvae_jax.config.training import TrainingConfig
from nvae_jax.training.optimizer import learning_rate_schedule, make_links, make_optimizer

SCHEDULES = ("e20w5", "e45w1", "e400w5", "e200w5_ffhq")


@pytest.mark.parametrize("name", SCHEDULES)
def test_learning_rate_is_the_official_one(name):
    official = goldens.under("standalone", f"lr/{name}")
    epochs, warmup, iterations, peak, lowest = official["settings"]
    config = TrainingConfig(
        epochs=int(epochs),
        batch_size=1,
        warmup_epochs=int(warmup),
        learning_rate=float(peak),
        min_learning_rate=float(lowest),
    )
    with jax.enable_x64(True):
        schedule = learning_rate_schedule(config, int(iterations))
        ours = schedule(jnp.arange(official["lr"].size))
        np.testing.assert_allclose(ours.reshape(official["lr"].shape), official["lr"], rtol=1e-12)
    single = jax.vmap(learning_rate_schedule(config, int(iterations)))(jnp.arange(ours.size))
    np.testing.assert_allclose(single, ours, rtol=1e-5)


def test_learning_rate_without_warmup_is_a_cosine_from_the_peak_down():
    config = TrainingConfig(epochs=3, batch_size=1, warmup_epochs=0, learning_rate=0.5)
    schedule = learning_rate_schedule(config, 2)
    middle = (0.5 + 1e-4) / 2
    np.testing.assert_allclose(
        [schedule(step) for step in range(6)], [0.5, 0.5, middle, middle, 1e-4, 1e-4], rtol=1e-5
    )


def chain(weight_decay, **options):
    """The optimiser with the regularisers off and a constant learning rate of 0.01."""
    config = TrainingConfig(
        epochs=10**6, batch_size=1, warmup_epochs=0, weight_decay=weight_decay, **options
    )
    optimizer = make_optimizer(config, steps_per_epoch=1)
    return optimizer, jax.jit(functools.partial(optimizer.update, regularization=0.0))


def in_model(params):
    """Puts parameters where the optimiser expects a model of several groups."""
    convolution = {"kernel": jnp.ones((1, 1, 2, 2))}
    return {"decoder": {"prior_features": jnp.ones(2), "scale_0": params}, "encoder": convolution}


@pytest.mark.parametrize(("kind", "weight_decay"), [("wd", 3e-4), ("nowd", 0.0)])
def test_adamax_takes_the_official_steps(kind, weight_decay):
    official = goldens.under("standalone", "adamax")
    names = ("p0", "p1", "p2")
    optimizer, update = chain(weight_decay)
    params = in_model({name: jnp.asarray(official[f"{name}/init"]) for name in names})
    state = optimizer.init(params)
    for step in range(6):
        gradient = jax.tree.map(jnp.zeros_like, params)
        gradient["decoder"]["scale_0"] = {name: official[f"{name}/grad{step}"] for name in names}
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        for name in names:
            ours = params["decoder"]["scale_0"][name]
            assert_close(ours, official[f"{kind}/{name}/after{step}"], 1e-6)
    adamax = state["adamax"]
    for name in names:
        assert_close(adamax.mu["decoder"]["scale_0"][name], official[f"{kind}/{name}/exp_avg"])
        assert_close(adamax.nu["decoder"]["scale_0"][name], official[f"{kind}/{name}/exp_inf"])


def first_moments(state):
    """The gradients that Adamax saw, from its state after one update."""
    adamax = state["adamax"]
    return jax.tree.map(lambda m: m / 0.1, adamax.mu)


def test_weight_decay_reaches_every_parameter():
    params = jax.tree.map(lambda x: 3.0 * x, in_model({"scale": jnp.ones(4), "bias": jnp.ones(4)}))
    optimizer, update = chain(weight_decay=0.1)
    _, state = update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    for seen, param in zip(*map(jax.tree.leaves, (first_moments(state), params)), strict=True):
        np.testing.assert_allclose(seen, 0.1 * param, rtol=1e-5)


def test_the_unused_start_of_a_one_group_decoder_never_moves():
    params = {
        "decoder": {"prior_features": jnp.ones(2), "first": {"kernel": jnp.ones((1, 1, 2, 2))}}
    }
    optimizer, update = chain(weight_decay=0.1)
    updates, _ = update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_array_equal(updates["decoder"]["prior_features"], 0)
    assert (updates["decoder"]["first"]["kernel"] != 0).all()


@pytest.mark.parametrize(("limit", "factor"), [(1.0, 0.1), (20.0, 1.0), (None, 1.0)])
def test_gradient_clip_bounds_the_global_norm(limit, factor):
    optimizer, update = chain(weight_decay=0.0, gradient_clip=limit)
    params = in_model({"bias": jnp.zeros(4)})
    gradient = jax.tree.map(jnp.zeros_like, params)
    gradient["decoder"]["scale_0"]["bias"] = jnp.array([6.0, 0.0, 0.0, 0.0])
    gradient["decoder"]["prior_features"] = jnp.array([0.0, 8.0])  # a global norm of 10
    _, state = update(gradient, optimizer.init(params), params)
    for seen, full in zip(*map(jax.tree.leaves, (first_moments(state), gradient)), strict=True):
        np.testing.assert_allclose(seen, factor * full, rtol=1e-5)


def test_gradient_clip_counts_the_regularisers():
    config = TrainingConfig(10, 1, warmup_epochs=0, weight_decay=0.0, gradient_clip=0.5)
    optimizer = make_optimizer(config, 1)
    params = in_model({"scale": jnp.array([1.0, -2.0])})
    zeros = jax.tree.map(jnp.zeros_like, params)
    _, state = optimizer.update(zeros, optimizer.init(params), params, regularization=100.0)
    seen = first_moments(state)
    np.testing.assert_allclose(optax.tree.norm(seen), 0.5, rtol=1e-5)
    # Both regularisers pull with the same weight: d σ/dW of ones (2, 2) is 1/2 everywhere.
    scale, kernel = seen["decoder"]["scale_0"]["scale"], seen["encoder"]["kernel"]
    np.testing.assert_allclose(scale[0], 0)
    np.testing.assert_allclose(kernel / -scale[1], 0.5 * jnp.ones((1, 1, 2, 2)), rtol=1e-4)


IMPOSSIBLE = {
    "epochs": [10**12, 0, -1],
    "batch_size": [10**12, 0],
    "accumulation_steps": [10**12, 0],
    "parameter_shards": [10**12, 0],
    "seed": [-1, 2**32],
    "optimizer": ["sgd", ""],
    "learning_rate": [0.0, -1e-2],
    "min_learning_rate": [-1e-4, 2e-2],
    "warmup_epochs": [-1, 10],
    "weight_decay": [-1e-4],
    "gradient_clip": [0.0, -1.0],
    "ema_decay": [0.0, 1.0, -0.5],
    "kl_warmup": [-0.1, 1.1],
    "kl_constant": [-0.1, 1.1],
    "kl_balance": ["cube", ""],
    "regularization": [-1.0],
    "initial_regularization": [0.0, -1.0],
    "log_interval": [0],
    "eval_interval": [0],
    "picture_interval": [0],
    "checkpoint_interval": [0],
    "keep_checkpoints": [0],
    "keep_best": [2],
    "keep_every": [0],
    "max_skipped": [0],
    "max_rollbacks": [-1],
    "skip_threshold": [0.0],
    "eval_batch_size": [0],
    "eval_statistics": ["batch", "", "averaged"],
    "recalibration_batches": [0],
    "drift_batches": [-1],
}
CASES = [(name, value) for name, values in IMPOSSIBLE.items() for value in values]


def test_every_setting_has_an_impossible_value():
    assert set(IMPOSSIBLE) == {field.name for field in dataclasses.fields(TrainingConfig)}


@pytest.mark.parametrize(("name", "value"), CASES)
def test_an_impossible_setting_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"^training\.{name} is .*; allowed: "):
        TrainingConfig(**({"epochs": 10, "batch_size": 1} | {name: value}))


def test_a_path_of_the_regularisation_requires_one():
    with pytest.raises(ValueError, match=r"^training.initial_regularization is 1.0; allowed: None"):
        TrainingConfig(10, 1, regularization=0.0, initial_regularization=1.0)


def test_without_regularisation_there_are_no_regularisers():
    links = make_links(TrainingConfig(10, 1, regularization=0.0, optimizer="adam"), 1)
    assert list(links) == ["weight_decay", "adam", "learning_rate"]


def test_settings_at_their_limits_are_allowed():
    TrainingConfig(
        epochs=1,
        batch_size=1,
        warmup_epochs=0,
        weight_decay=0.0,
        min_learning_rate=1e-2,
        kl_warmup=0.0,
        kl_constant=1.0,
        ema_decay=0.999,
        initial_regularization=1.0,
        eval_batch_size=1,
    )
