import math

import jax.numpy as jnp
import numpy as np
import pytest

from nvae_jax.model.distributions import bits_per_dimension
from nvae_jax.training.metrics import flatten_metrics, mean_metrics


def test_uniform_guess_of_8_bits_is_8_bits():
    assert bits_per_dimension(3072 * math.log(256), 3072) == pytest.approx(8.0)


def test_flat_metrics_name_groups_and_give_nats_in_bits_too():
    metrics = {"nelbo": 7.0, "learning_rate": 0.5, "group_kl": np.arange(11.0)}
    flat = flatten_metrics(metrics, "train", 10)
    assert flat["train/nelbo"] == 7.0
    assert flat["train/nelbo_bits_per_dim"] == pytest.approx(0.7 / math.log(2))
    assert flat["train/learning_rate"] == 0.5
    assert "train/learning_rate_bits_per_dim" not in flat
    assert [flat[f"train/group_kl/{g:02d}"] for g in range(11)] == list(range(11))


def test_means_are_over_steps():
    window = [{"a": jnp.asarray(1.0), "g": jnp.asarray([1.0, 2.0])}] * 3
    window += [{"a": jnp.asarray(5.0), "g": jnp.asarray([3.0, 6.0])}]
    means = mean_metrics(window)
    assert means["a"] == 2.0
    np.testing.assert_array_equal(means["g"], [1.5, 3.0])
