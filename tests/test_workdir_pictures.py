"""Sheets of images, and picture files."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from nvae_jax.workdir import Workdir
from nvae_jax.workdir.pictures import animation, image_file, image_grid, png, to_levels


def test_grid_places_images_row_by_row():
    images = np.stack([np.full((2, 3, 1), level) for level in (0.0, 0.2, 1.7)])

    grid = image_grid(images, columns=2, padding=1)

    pictured, blank = [255, 0, 0, 0, 255, 51, 51, 51, 255], [255] * 9
    assert grid.dtype == np.uint8
    np.testing.assert_array_equal(grid[..., 0], [blank, pictured, pictured, *[blank] * 4])
    np.testing.assert_array_equal(grid[..., 0], grid[..., 2])


def test_grid_is_about_square_by_default_and_keeps_colours():
    images = jnp.zeros((5, 4, 4, 3), jnp.bfloat16).at[..., 1].set(1.0)
    grid = image_grid(images, padding=0)
    assert grid.shape == (2 * 4, 3 * 4, 3)
    np.testing.assert_array_equal(grid[0, 0], [0, 255, 0])


def test_grid_shows_what_is_not_finite():
    images = np.zeros((1, 1, 3, 1))
    images[0, 0, :, 0] = [np.nan, np.inf, 0.0]
    grid = image_grid(images, padding=0)
    np.testing.assert_array_equal(grid[0], [[255, 0, 255], [255, 0, 255], [0, 0, 0]])


def test_grid_shows_alpha_on_a_checkerboard():
    images = np.ones((1, 16, 16, 4)) * [1.0, 0.5, 0.0, 1.0]
    images[:, :, 8:, 3] = 0.0
    images[:, :, 4:8, 3] = 0.5
    grid = image_grid(images, padding=0)
    assert (grid[:, :4] == [255, 128, 0]).all()
    board = grid[:, 8:]
    assert set(np.unique(board)) == {153, 204}  # grey squares of two pixels
    np.testing.assert_array_equal(board[:2, :2], board[2:4, 2:4])
    assert (board[:2, :2] != board[:2, 2:4]).all()
    half = (grid[:, 4:8].astype(float) - np.asarray([255, 128, 0]) / 2) * 2
    np.testing.assert_allclose(half, grid[:, 8:12], atol=2)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_an_image_file_has_the_images_levels(channels):
    image = np.random.default_rng(0).integers(0, 256, (4, 6, channels))
    read = np.asarray(Image.open(io.BytesIO(image_file(image / 255))))
    np.testing.assert_array_equal(read[..., :channels], image)


@pytest.mark.parametrize("channels", [2, 5])
def test_grid_shows_other_channels_side_by_side(channels):
    images = np.random.default_rng(0).uniform(size=(3, 4, 6, channels))
    planes = image_grid(images.transpose(0, 3, 1, 2).reshape(-1, 4, 6, 1), channels, padding=0)
    np.testing.assert_array_equal(image_grid(images, 1, padding=0), planes)


@pytest.mark.parametrize(
    ("images", "columns", "message"),
    [
        (np.zeros((4, 4, 3)), 1, r"images are float64\[4, 4, 3\]; allowed: float\[N > 0, H, W, C"),
        (np.zeros((1, 4, 4, 0)), 1, r"float64\[1, 4, 4, 0\]"),
        (np.zeros((0, 4, 4, 3)), None, r"float64\[0, 4, 4, 3\]"),
        (np.zeros((1, 4, 4, 3), np.uint8), 1, r"uint8\[1, 4, 4, 3\]"),
        (np.zeros((1, 4, 4, 3)), 0, "columns is 0"),
    ],
)
def test_grid_refuses(images, columns, message):
    with pytest.raises(ValueError, match=message):
        image_grid(images, columns)


@pytest.mark.parametrize(("side", "factor"), [(4, 16), (24, 2), (64, 1), (100, 1)])
def test_picture_is_the_grid_large_enough_to_see(tmp_path, side, factor):
    workdir = Workdir(tmp_path)
    images = np.random.default_rng(0).uniform(size=(3, side, 4, 3))
    workdir.save_picture("samples", images)
    saved = np.asarray(Image.open(workdir.path / "pictures" / "samples.png"))
    enlarged = np.kron(image_grid(images), np.ones((factor, factor, 1), np.uint8))
    np.testing.assert_array_equal(saved, enlarged)
    assert [path.name for path in (workdir.path / "pictures").iterdir()] == ["samples.png"]


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
