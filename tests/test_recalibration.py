"""Statistics of samples: the running average by hand, kept and used again."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from tiny import ONE_DEVICE, make_run

from nvae_jax.evaluation import recalibration
from nvae_jax.evaluation.batch_statistics import BatchStatistics
from nvae_jax.evaluation.recalibration import (
    recalibrate,
    recalibrated,
    recalibrated_on_images,
)
from nvae_jax.evaluation.trained import open_run
from nvae_jax.model import NVAE

TEMPERATURES = np.float32([0.5, 0.5, 1.0, 1.0])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return open_run(make_run(tmp_path_factory.mktemp("run")), ONE_DEVICE)


def test_statistics_are_the_running_average_of_samples(model):
    actual = flatten_dict(recalibrate(model, TEMPERATURES, batches=2, batch_size=2, seed=1))
    # A model whose statistics start at zero gets 0.05 of a batch's in one step.
    zeros = jax.tree.map(jnp.zeros_like, model.variables["batch_stats"])

    @jax.jit
    def batch_statistics(number):
        key = jax.random.fold_in(jax.random.key(1), number)
        variables = {"params": model.variables["params"], "batch_stats": zeros}
        arguments = {"method": "sample_prior", "train": True, "mutable": ["batch_stats"]}
        return NVAE(model.config).apply(
            variables, 2, jnp.asarray(TEMPERATURES), rngs={"sample": key}, **arguments
        )[1]["batch_stats"]

    first, second = (flatten_dict(batch_statistics(number)) for number in range(2))
    for path, before in flatten_dict(model.variables["batch_stats"]).items():
        expected = before
        if path[0] == "decoder":
            expected = 0.95 * (0.95 * before + first[path]) + second[path]
            assert not np.allclose(expected, before)
        np.testing.assert_allclose(actual[path], expected, rtol=1e-4, atol=1e-5)


def test_statistics_are_kept_and_used_again(model, monkeypatch):
    calls = []
    compute = recalibration.recalibrate
    monkeypatch.setattr(
        recalibration, "recalibrate", lambda *args: (calls.append(args), compute(*args))[1]
    )
    once = recalibrated(model, TEMPERATURES, 1, 2)
    again = recalibrated(model, TEMPERATURES, 1, 2)
    assert len(calls) == 1
    jax.tree.map(np.testing.assert_array_equal, again.variables, once.variables)
    recalibrated(model, TEMPERATURES + 0.1, 1, 2)
    assert len(calls) == 2
    files = list((model.workdir.path / "recalibrated").iterdir())
    assert len(files) == 2
    with np.load(files[0]) as file:
        assert '"temperatures"' in str(file["provenance"])
        assert '"step": 7' in str(file["provenance"])


def test_statistics_that_are_not_finite_are_refused_and_not_kept(model, tmp_path):
    broken = jax.tree.map(lambda x: x * np.nan, model.variables["params"])
    broken = dataclasses.replace(model, variables=model.variables | {"params": broken}, step=8)
    with pytest.raises(FloatingPointError, match=r"not finite in .* layers, decoder"):
        recalibrated(broken, TEMPERATURES, 1, 2)
    assert not list((model.workdir.path / "recalibrated").glob("step_8_*"))


def test_a_model_without_batch_norm_stays_as_it_is(model):
    bare = dataclasses.replace(model, variables=model.variables | {"batch_stats": {}})
    assert recalibrated(bare, TEMPERATURES) is bare


class SameImage:
    """A split of one image, of which all batches are the same to the encoder."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        # Black and white, which every draw of a binary image is.
        return 255 * np.random.default_rng(0).integers(0, 2, (32, 32, 1), np.uint8)


def test_statistics_of_images_are_their_running_average(model):
    statistics = BatchStatistics(model.config, 2, model.mesh)
    before = flatten_dict(model.variables["batch_stats"])
    once, thrice = (
        flatten_dict(statistics.updated(model.variables, SameImage(), batches))
        for batches in (1, 3)
    )
    encoder = [path for path in before if path[0] != "decoder"]
    assert len(encoder) > 10
    for path in encoder:
        change = once[path] - before[path]  # 0.05 of the way to the statistics of the image
        expected = before[path] + (1 + 0.95 + 0.95**2) * change
        np.testing.assert_allclose(thrice[path], expected, rtol=1e-4, atol=1e-5)
    assert all(not np.array_equal(once[path], before[path]) for path in before)
    # By the statistics of batches, the running ones make no difference.
    with_others = model.variables | {"batch_stats": unflatten_dict(thrice)}
    own = [statistics.nelbo(v, SameImage(), 2) for v in (model.variables, with_others)]
    assert own[0] == pytest.approx(own[1], rel=1e-5)


def test_statistics_of_images_are_kept(model, monkeypatch):
    seen = []

    def updated(self, variables, source, batches, seed):
        seen.append((source, batches, seed))
        return jax.tree.map(lambda x: x + 1, variables["batch_stats"])

    monkeypatch.setattr(BatchStatistics, "updated", updated)
    once, again = (recalibrated_on_images(model, 3, seed=1) for _ in range(2))
    assert seen == [(model.dataset.train, 3, 1)]
    for found in (once, again):
        changed = jax.tree.map(lambda x: x + 1, model.variables["batch_stats"])
        jax.tree.map(np.testing.assert_array_equal, found.variables["batch_stats"], changed)
