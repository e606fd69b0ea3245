"""The loss's terms: the official implementation's numbers, and the identities they must satisfy."""

import goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

from nvae_jax.config.training import TrainingConfig
from nvae_jax.model import ModelConfig, VAEOutput
from nvae_jax.model.distributions import log_likelihood
from nvae_jax.objectives.elbo import balance_kl, balance_targets, elbo_terms, free_bits
from nvae_jax.training.schedules import kl_weight, regularization_weight

BALANCE_GROUPS = goldens.from_json(goldens.load("standalone")["kl_balancer_coeff/groups"])
RULES = ("equal", "linear", "sqrt", "square")


def model_with_groups(groups):
    """A model with these numbers of groups, the finest scale first."""
    return ModelConfig(
        image_shape=(64, 64, 3),
        num_scales=len(groups),
        num_groups=groups[0],
        adaptive_groups=len(set(groups)) > 1,
        min_groups=groups[-1],
    )


def test_kl_weight_is_the_official_one():
    official = goldens.under("standalone", "kl_coeff")
    for (ramp, constant, least), values in zip(
        official["settings"], official["values"], strict=True
    ):
        total = 10 * ramp
        ours = kl_weight(official["steps"], total, ramp / total, constant / total)
        # The least weight is not a setting of ours; it is 1e-4.
        np.testing.assert_allclose(np.maximum(ours, least), values, rtol=1e-5)


def test_kl_weight_stays_between_its_bounds_and_may_jump():
    weight = kl_weight(np.arange(1000), 1000, warmup=0.3, constant=0.1)
    np.testing.assert_array_equal(weight[:101], np.float32(1e-4))
    np.testing.assert_array_equal(weight[400:], 1.0)
    assert (np.diff(weight[100:401]) > 0).all()
    np.testing.assert_allclose(weight[250], 0.5, rtol=1e-5)

    jump = kl_weight(np.arange(4), 4, warmup=0.0, constant=0.25)
    np.testing.assert_array_equal(jump, np.float32([1e-4, 1e-4, 1, 1]))


@pytest.mark.parametrize(
    ("name", "initial", "final"), [("init1_final1e-2", 1.0, 1e-2), ("init10_final1e-1", 10.0, 0.1)]
)
def test_regularization_weight_is_the_official_one(name, initial, final):
    official = goldens.under("standalone", "wdn_anneal")
    config = TrainingConfig(10, 1, regularization=final, initial_regularization=initial)
    ours = regularization_weight(config, official["kl_coeff"])
    np.testing.assert_allclose(ours, official[name], rtol=1e-5)


def test_regularization_weight_is_constant_without_a_start():
    weight = regularization_weight(TrainingConfig(10, 1, regularization=0.3), jnp.linspace(0, 1, 5))
    np.testing.assert_allclose(weight, 0.3, rtol=1e-6)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("index", range(len(BALANCE_GROUPS)))
def test_balance_targets_are_the_official_ones(index, rule):
    config = model_with_groups(BALANCE_GROUPS[index])
    assert [scale.groups for scale in config.scales] == BALANCE_GROUPS[index]
    expected = goldens.under("standalone", f"kl_balancer_coeff/{index}")[rule]
    np.testing.assert_allclose(balance_targets(config, rule), expected, rtol=1e-6)


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_balancing_is_the_official_one(beta):
    official = goldens.under("standalone", "kl_balancer")
    total, weights = balance_kl(official["kl_all"], jnp.float32(beta), official["alpha"])
    assert_close(total, official[f"bal{beta}/kl"])
    assert_close(weights, official[f"bal{beta}/coeffs"])
    if beta == 1.0:
        assert_close(total, official["nobal/kl"])


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([(1, 1), (4, 3)]), st.integers(0, 2**31), st.floats(1e-4, 1 - 1e-4))
def test_balancing_conserves_the_weights_sum(shape, seed, beta):
    rng = np.random.default_rng(seed)
    kl, targets = rng.normal(size=shape), rng.uniform(1, 16, shape[1])

    def total(kl):
        return balance_kl(kl, jnp.float32(beta), targets)[0].sum()

    weights = balance_kl(kl, jnp.float32(beta), targets)[1]
    np.testing.assert_allclose(weights.mean(), 1, rtol=1e-5)
    # Twice the target, twice the say of the others: weight · α / size is the same for all groups.
    ratio = weights * targets / (np.abs(kl).mean(0) + 0.01)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)
    # The weights carry no gradient, so each image's KL enters with the weight itself.
    gradient = jax.grad(total)(jnp.asarray(kl, jnp.float32))
    np.testing.assert_allclose(gradient, np.broadcast_to(beta * weights, kl.shape), rtol=1e-5)


def test_the_terms_add_up_to_the_loss():
    config = ModelConfig(image_shape=(4, 4, 1), likelihood="bernoulli", num_groups=2, border=1)
    key_logits, key_x, key_kl = jax.random.split(jax.random.key(0), 3)
    logits = 5 * jax.random.normal(key_logits, (3, 4, 4, 1))
    x = jax.random.bernoulli(key_x, shape=(3, 4, 4, 1)).astype(jnp.float32)
    kl = jax.random.uniform(key_kl, (3, 2))
    output = VAEOutput(
        logits,
        log_q=kl[:, 0],
        log_p=kl[:, 1],
        kl=kl,
        kl_per_channel=kl.T,
        kl_per_image_and_channel=kl[..., None],
    )
    targets = jnp.array([1.0, 3.0])

    terms = elbo_terms(config, output, x, jnp.float32(0.5), targets)

    np.testing.assert_array_equal(terms.reconstruction, -log_likelihood(config, logits, x))
    assert (terms.reconstruction > 0).all()
    np.testing.assert_allclose(terms.kl, kl.sum(1), rtol=1e-6)
    weighted, balance = balance_kl(kl, jnp.float32(0.5), targets)
    np.testing.assert_array_equal(terms.balance, balance)
    np.testing.assert_allclose(terms.nelbo, terms.reconstruction + terms.kl, rtol=1e-6)
    np.testing.assert_allclose(terms.loss, (terms.reconstruction + weighted).mean(), rtol=1e-6)

    # With the KL at its full weight, what is minimised is the bound itself.
    full = elbo_terms(config, output, x, jnp.float32(1.0), targets)
    np.testing.assert_allclose(full.loss, full.nelbo.mean(), rtol=1e-6)

    # β is a factor on the KL alone.
    double = elbo_terms(config, output, x, jnp.float32(1.0), targets, factor=2.0)
    np.testing.assert_allclose(double.loss, (terms.reconstruction + 2 * terms.kl).mean(), rtol=1e-6)
    np.testing.assert_array_equal(double.nelbo, full.nelbo)

    # Channels whose mean is below the floor cost the floor, whatever the single images have.
    least = float(np.mean(kl.mean(0)))
    floored = elbo_terms(config, output, x, jnp.float32(1.0), targets, least=least)
    cost = np.maximum(kl.mean(0), least).sum()
    np.testing.assert_allclose(floored.loss, terms.reconstruction.mean() + cost, rtol=1e-6)


def test_free_bits_have_no_gradient_below_the_floor():
    kl = jnp.asarray([[[0.1, 3.0], [0.2, 0.9]], [[0.3, 1.0], [0.4, 0.7]]])  # (B, groups, Z)
    gradient = jax.grad(lambda kl: free_bits(kl, 0.75).sum(1).mean())(kl)
    np.testing.assert_array_equal(gradient[:, :, 0], 0)  # means 0.2 and 0.3
    np.testing.assert_array_equal(gradient[:, :, 1], [[0.5, 0.5]] * 2)  # means 2 and 0.8
    np.testing.assert_allclose(free_bits(kl, 0.75).mean(0), [0.75 + 2.0, 0.75 + 0.8], rtol=1e-6)
