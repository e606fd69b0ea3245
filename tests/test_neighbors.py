"""The nearest training images, against a search by NumPy."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from tiny import ONE_DEVICE, make_run

from nvae_jax.evaluation.trained import open_run
from nvae_jax.modes.neighbors import MEASURES, NeighborsOptions, find_nearest, neighbors
from nvae_jax.parallel import make_mesh


@pytest.fixture
def path(tmp_path):
    return make_run(tmp_path)


@pytest.mark.parametrize("flip", [False, True])
def test_search_by_blocks_finds_what_a_whole_search_finds(path, flip):
    model = open_run(path, make_mesh())
    # A cached property: the next to ask for the dataset gets this one.
    vars(model)["dataset"] = dataclasses.replace(model.dataset, flip=flip)
    source = model.dataset.train[:37]
    rng = np.random.default_rng(0)
    copy = np.float32(source[20, 2:30, 2:30] / 255)
    queries = np.stack([copy[:, ::-1] if flip else copy, rng.uniform(size=copy.shape)])
    queries = queries.astype(np.float32)
    found = find_nearest(model, queries, source, nearest=3, batch_size=2)

    images = source[:, 2:30, 2:30] / 255
    variants = [images, images[:, :, ::-1]] if flip else [images]
    d = [np.sqrt(np.square(x[None] - queries[:, None]).mean((2, 3, 4))) for x in variants]
    distance = np.min(d, axis=0)
    order = np.argsort(distance, axis=1)[:, :3]
    np.testing.assert_array_equal(found["pixels"][0], order)
    expected = np.take_along_axis(distance, order, 1)
    np.testing.assert_allclose(found["pixels"][1], expected, rtol=1e-4, atol=1e-7)
    for measure in MEASURES:
        assert found[measure][0][0, 0] == 20
        assert found[measure][1][0, 0] < 1e-6
        assert (np.diff(found[measure][1]) >= 0).all()
    means = jax.image.resize(queries, (2, 8, 8, 1), "linear")
    other = jax.image.resize(images[found["downsampled"][0][1, 0]], (8, 8, 1), "linear")
    if not flip:
        expected = np.sqrt(np.square(means[1] - other).mean())
        np.testing.assert_allclose(found["downsampled"][1][1, 0], expected, rtol=1e-4)


def test_report_and_picture(path):
    report = neighbors(
        open_run(path, ONE_DEVICE), NeighborsOptions(num_images=2, nearest=3, batch_size=1)
    )
    assert json.loads((path / "neighbors" / "neighbors.json").read_text()) == json.loads(
        json.dumps(report)
    )
    assert (path / "neighbors" / "neighbors.png").exists()
    for measure in MEASURES:
        distance = np.asarray(report[measure]["samples"]["distance"])
        assert distance.shape == (2, 3)
        np.testing.assert_allclose(
            report[measure]["mean_nearest_of_samples"], distance[:, 0].mean()
        )
        assert report[measure]["mean_nearest_of_test_images"] > 0
    with pytest.raises(ValueError, match="nearest is 9999; allowed: at most 1500"):
        neighbors(open_run(path, ONE_DEVICE), NeighborsOptions(nearest=9999))
