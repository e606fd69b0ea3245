import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIG

from nvae_jax.data.sources import make_dataset
from nvae_jax.data.transforms import prepare_eval
from nvae_jax.evaluation.likelihood import make_validation
from nvae_jax.model import NVAE
from nvae_jax.model.distributions import log_likelihood
from nvae_jax.parallel import make_mesh


@pytest.fixture(scope="module")
def dataset():
    digits = make_dataset("digits")
    return dataclasses.replace(digits, test=digits.test[:19])


@pytest.fixture(scope="module")
def variables():
    x = jnp.zeros((2, *CONFIG.image_shape))
    return NVAE(CONFIG).init(jax.random.key(0), x, train=True)


def test_mean_over_a_ragged_split_is_that_of_its_images(dataset, variables):
    mesh = make_mesh(jax.devices()[:1])
    means = make_validation(CONFIG, dataset, 8, mesh)(variables)

    total, groups = 0.0, np.zeros(2)
    for number, start in enumerate(range(0, 19, 8)):
        # The last batch repeats the last image, so that the noise has the shape it had.
        index = np.minimum(np.arange(start, start + 8), 18)
        x = prepare_eval(
            jnp.asarray(dataset.test[index]), jnp.asarray(index), binarize=True, num_bits=8
        )
        key = jax.random.fold_in(jax.random.key(0), number)
        output = NVAE(CONFIG).apply(variables, x, train=False, rngs={"sample": key})
        real = slice(0, min(8, 19 - start))
        total -= float(log_likelihood(CONFIG, output.logits, x)[real].sum())
        groups += np.asarray(output.kl[real].sum(0))
    np.testing.assert_allclose(means["reconstruction"], total / 19, rtol=1e-5)
    np.testing.assert_allclose(means["group_kl"], groups / 19, rtol=1e-5)
    np.testing.assert_allclose(means["kl"], groups.sum() / 19, rtol=1e-5)
    np.testing.assert_allclose(means["nelbo"], (total + groups.sum()) / 19, rtol=1e-5)


def test_one_device_and_eight_agree(dataset, variables):
    one = make_validation(CONFIG, dataset, 8, make_mesh(jax.devices()[:1]))(variables)
    eight = make_validation(CONFIG, dataset, 8, make_mesh())(variables)
    for name, value in one.items():
        np.testing.assert_allclose(eight[name], value, rtol=1e-5, err_msg=name)
