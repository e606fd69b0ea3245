"""The mode `sample`: images by seed and number alone, in every form."""

import json
import os

import numpy as np
import pytest
from PIL import Image
from tiny import ONE_DEVICE, make_run

from nvae_jax.errors import ConfigError
from nvae_jax.evaluation.latents import decode_latents
from nvae_jax.evaluation.trained import image_keys, image_noise, open_run
from nvae_jax.modes.sample import SampleOptions, sample
from nvae_jax.parallel import make_mesh


@pytest.fixture
def path(tmp_path):
    return make_run(tmp_path)


def read_png(path):
    with Image.open(path) as file:
        return np.asarray(file)


def test_one_device_and_eight_write_the_same_files(path):
    model = open_run(path, ONE_DEVICE)
    options = {"num_images": 11, "temperature": (0.7, 1.0), "batch_size": 1, "seed": 5}
    one = sample(model, SampleOptions(**options, name="one"))
    eight = sample(open_run(path, make_mesh()), SampleOptions(**options, name="eight"))
    with open(one, "rb") as a, open(eight, "rb") as b:
        assert a.read() == b.read()
    sheet = read_png(one)
    assert sheet.shape == (3 * 30 + 2, 4 * 30 + 2, 3)

    # The same images in the other forms, whatever their number.
    npz = np.load(sample(model, SampleOptions(**options | {"num_images": 2}, output="npz")))
    provenance = json.loads(str(npz["provenance"]))
    assert provenance["step"] == 7
    assert provenance["temperature"] == [0.7, 1.0]
    folder = sample(model, SampleOptions(**options | {"num_images": 2}, output="files"))
    for i, image in enumerate(npz["images"]):
        np.testing.assert_array_equal(read_png(f"{folder}/{i:06d}.png")[..., :1], image)
        tile = sheet[2:30, 2 + 30 * i : 30 + 30 * i, :1]
        np.testing.assert_array_equal(tile, image)
    # The folder holds what was asked for, or the command is refused.
    with pytest.raises(ConfigError, match=r"holds 1 other file\(s\), such as \['000001.png'\]"):
        sample(model, SampleOptions(**options | {"num_images": 1}, output="files"))
    assert sorted(os.listdir(folder)) == ["000000.png", "000001.png"]

    # And the model's own, by noise and temperature.
    noise = image_noise(model.config, image_keys(5, np.arange(2, dtype=np.uint32)))
    noise = [np.asarray(z * t) for z, t in zip(noise, [0.7, 0.7, 1.0, 1.0], strict=True)]

    expected = 255 * decode_latents(model, noise, "noise", batch_size=2)
    np.testing.assert_allclose(npz["images"], expected, atol=0.51)


def test_pixels_can_be_drawn(path):
    options = SampleOptions(num_images=3, pixels="sample", output="npz", batch_size=1)
    images = np.load(sample(open_run(path, ONE_DEVICE), options))["images"]
    assert set(np.unique(images)) == {0, 255}


def test_impossible_options_are_refused(path):
    with pytest.raises(ValueError, match="num_images is 0; allowed: 1 to 1000000000"):
        SampleOptions(num_images=0)
    with pytest.raises(ValueError, match=r"temperature is \(1.0, 1.0, 1.0\); allowed: 1, 2"):
        sample(open_run(path, ONE_DEVICE), SampleOptions(temperature=(1.0, 1.0, 1.0)))
