"""A run of an earlier version, `goldens/old_run.tar.gz`, is evaluated and trained on as before."""

import tarfile
from pathlib import Path

import numpy as np
import pytest

import nvae_jax
from nvae_jax.evaluation.likelihood import bounds_of_images
from nvae_jax.workdir import Workdir


@pytest.fixture
def old(tmp_path):
    with tarfile.open(Path(__file__).parent / "goldens" / "old_run.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def test_it_has_the_bounds_that_its_own_version_found(old):
    run = nvae_jax.load(old)
    assert run.step == 5
    images = run.images("test:0-7")
    bounds = bounds_of_images(run.trained, images, 2, 1, 0, batch_size=8)
    expected = [
        1433.5017,
        1461.4802,
        1578.5403,
        1498.2307,
        1448.6936,
        1600.5027,
        1482.6819,
        1431.1213,
    ]
    np.testing.assert_allclose(-bounds, expected, rtol=1e-5)


def test_it_trains_on_to_where_its_own_version_came(old):
    record = nvae_jax.train(None, old)
    assert record["step"] == 10
    losses = {
        r["step"]: r["train/nelbo"]
        for r in Workdir(old).records.read_metrics()
        if "train/nelbo" in r
    }
    assert list(losses) == [2, 4, 6, 8, 10]
    # Rounding of other programs for the same sums, grown over five updates.
    assert losses[8] == pytest.approx(1141.0764, rel=1e-5)
    assert record["validation/nelbo"] == pytest.approx(775.1045, rel=1e-4)
