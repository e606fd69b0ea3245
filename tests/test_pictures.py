import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIG, ONE_DEVICE, random_variables

from nvae_jax.data.sources import data_config
from nvae_jax.evaluation.likelihood import make_validation
from nvae_jax.evaluation.pictures import COLUMNS, TEMPERATURES, draw_curves, make_pictures
from nvae_jax.evaluation.sampling import make_sampler
from nvae_jax.workdir.pictures import image_grid


@pytest.fixture(scope="module")
def variables():
    return random_variables(CONFIG)


def test_pictures_have_a_row_a_temperature_and_inputs_above_outputs(variables):
    digits = data_config("digits").open()
    draw = make_pictures(CONFIG, digits.test)
    pictures = draw(variables)
    assert pictures["samples"].shape == (len(TEMPERATURES), COLUMNS, 28, 28, 1)
    assert pictures["reconstructions"].shape == (4, COLUMNS, 28, 28, 1)
    inputs = pictures["reconstructions"][0]
    assert set(np.unique(inputs)) == {0.0, 1.0}
    apart = np.arange(COLUMNS) * (297 // (2 * COLUMNS))
    test = CONFIG.image.evaluation_pixels(digits.test[apart], jnp.asarray(apart))
    np.testing.assert_array_equal(inputs, test[:, 2:-2, 2:-2])
    outputs = pictures["reconstructions"][1]
    assert ((outputs > 0) & (outputs < 1)).all()
    # Binarised once and for all, and the same noise: the same pictures again.
    for name, images in draw(variables).items():
        np.testing.assert_array_equal(images, pictures[name])
    assert not np.allclose(pictures["samples"][0], pictures["samples"][-1])


@pytest.mark.parametrize("number", [1, 3])
def test_few_test_images_make_as_many_columns(variables, number):
    digits = data_config("digits").open()
    pictures = make_pictures(CONFIG, digits.test[:number])(variables)
    assert pictures["samples"].shape == (len(TEMPERATURES), COLUMNS, 28, 28, 1)
    rows = pictures["reconstructions"]
    assert rows.shape == (2, number, 28, 28, 1)
    assert set(np.unique(rows[0])) == {0.0, 1.0}  # the test images, above what they become


@pytest.mark.parametrize("channels", [2, 4])
def test_images_of_other_channels_are_validated_and_drawn(channels):
    config = dataclasses.replace(
        CONFIG, image_shape=(8, 8, channels), border=0, likelihood="logistic_mixture"
    )
    variables = random_variables(config)
    test = np.random.default_rng(0).integers(0, 256, (3, 8, 8, channels), np.uint8)
    pictures = make_pictures(config, test)(variables)
    assert pictures["samples"].shape == (len(TEMPERATURES), COLUMNS, 8, 8, channels)
    assert pictures["reconstructions"].shape == (2, 3, 8, 8, channels)
    np.testing.assert_allclose(pictures["reconstructions"][0], test / 255, atol=1e-6)
    for rows in pictures.values():
        sheet = image_grid(rows.reshape(-1, *rows.shape[2:]), rows.shape[1], padding=0)
        width = 8 * (1 if channels == 4 else channels)
        assert sheet.shape == (8 * rows.shape[0], width * rows.shape[1], 3)
    means = make_validation(config, test, 3, ONE_DEVICE)(variables)
    assert all(np.isfinite(value).all() for value in means.values())
    parts = means["reconstruction"] + means["kl"]
    np.testing.assert_allclose(means["nelbo"], parts, rtol=1e-6)


def test_temperature_can_differ_by_group(variables):
    sample = make_sampler(CONFIG, 4)
    key = jax.random.key(1)
    same = sample(variables, key, 0.7)
    np.testing.assert_array_equal(sample(variables, key, jnp.asarray([0.7, 0.7])), same)
    assert not np.allclose(sample(variables, key, jnp.asarray([0.7, 1.0])), same)


def test_curves_are_a_picture_of_the_records():
    records = [
        {"step": s, "train/nelbo": 300 / s, "validation/nelbo": 310 / s, "train/group_kl/0": s}
        for s in (1, 2, 3)
    ]
    image = draw_curves(records, 100.0, "title")
    assert image.ndim == 3
    assert image.shape[-1] == 3
    assert 0 <= image.min() < image.max() <= 1
    assert not np.array_equal(image, draw_curves(records[:2], 100.0, "title"))
