import io

import numpy as np
import pytest
from PIL import Image

from nvae_jax.evaluation.files import animation, npz, png, to_levels


def test_levels_are_rounded_and_finite():
    np.testing.assert_array_equal(to_levels(np.array([-1, 0.5, 0.498, 2])), [0, 128, 127, 255])
    with pytest.raises(FloatingPointError, match="not finite"):
        to_levels(np.array([np.nan]))


def test_a_png_is_a_grid():
    images = np.linspace(0, 1, 3)[:, None, None, None] * np.ones((3, 4, 5, 3))
    sheet = np.asarray(Image.open(io.BytesIO(png(images, columns=3, padding=1))))
    assert sheet.shape == (6, 19, 3)
    np.testing.assert_array_equal(sheet[1, [1, 7, 13], 0], [0, 128, 255])


@pytest.mark.parametrize("kind", ["gif", "webp", "apng"])
def test_an_animation_goes_forward_and_back(kind):
    frames = np.linspace(0, 1, 4).reshape(4, 1, 1, 1, 1) * np.ones((4, 1, 16, 16, 3))
    with Image.open(io.BytesIO(animation(frames, kind))) as file:
        assert file.n_frames == 6
        levels = []
        for i in range(6):
            file.seek(i)
            levels.append(int(np.asarray(file.convert("RGB"))[8, 8, 0]))
    np.testing.assert_allclose(levels, [0, 85, 170, 255, 170, 85], atol=4)


def test_arrays_come_back():
    assert np.load(io.BytesIO(npz(a=np.arange(3))))["a"].tolist() == [0, 1, 2]
