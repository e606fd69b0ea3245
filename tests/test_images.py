"""Decoding and geometry against Pillow itself, pixel for pixel."""

import functools
import io

import numpy as np
import pytest
import stored
from PIL import Image

from nvae_jax.data.images import (
    CHANNELS,
    ImageReader,
    contain_and_pad,
    cover,
    cover_and_crop,
    crop_and_resize,
    stretch,
)

BILINEAR = Image.Resampling.BILINEAR


@pytest.fixture(scope="module")
def photo():
    """A photograph of 61x47 pixels."""
    return stored.photos(1, 47, 61)[0]


def saved(image, image_format="png", **options):
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def test_colours_survive(photo):
    np.testing.assert_array_equal(ImageReader()(saved(Image.fromarray(photo))), photo)


def test_files_and_bytes_read_alike(photo, tmp_path):
    content = saved(Image.fromarray(photo), "jpeg")
    (tmp_path / "a.jpg").write_bytes(content)
    np.testing.assert_array_equal(ImageReader()(tmp_path / "a.jpg"), ImageReader()(content))


def test_grey_becomes_three_equal_channels_and_colour_luma(photo):
    grey = photo[..., 0]
    image = ImageReader(3)(saved(Image.fromarray(grey)))
    np.testing.assert_array_equal(image, np.stack([grey] * 3, axis=-1))
    luma = ImageReader(1)(saved(Image.fromarray(photo)))
    assert luma.shape == (47, 61, 1)
    np.testing.assert_allclose(luma[..., 0], photo @ [0.299, 0.587, 0.114], atol=0.51)


def test_sixteen_bits_keep_their_upper_eight(photo):
    levels = photo[..., 0].astype(np.uint16) * 256 + 255
    for image_format in ("png", "tiff"):
        image = ImageReader(1)(saved(Image.fromarray(levels), image_format))
        np.testing.assert_array_equal(image[..., 0], photo[..., 0])


def test_transparency_lies_on_white_or_is_a_channel(photo):
    alpha = np.zeros((47, 61, 1), np.uint8)
    alpha[:20] = 255
    rgba = np.concatenate([photo, alpha], axis=-1)
    on_white = np.where(alpha == 255, photo, 255)
    content = saved(Image.fromarray(rgba))
    np.testing.assert_array_equal(ImageReader(3)(content), on_white)
    np.testing.assert_array_equal(ImageReader(4)(content), rgba)
    grey = saved(Image.fromarray(rgba[..., [0, 3]], "LA"))
    np.testing.assert_array_equal(ImageReader(1)(grey)[..., 0], on_white[..., 0])


def test_palettes_are_looked_up():
    indices = np.arange(12, dtype=np.uint8).reshape(3, 4)
    image = Image.fromarray(indices, "P")
    palette = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)
    image.putpalette(palette.tobytes())
    np.testing.assert_array_equal(ImageReader()(saved(image)), palette[indices])
    # A palette with a transparent entry.
    transparent = ImageReader()(saved(image, transparency=5))
    np.testing.assert_array_equal(transparent[1, 1], [255, 255, 255])
    np.testing.assert_array_equal(transparent[1, 2], palette[6])


def test_cameras_orientation_is_obeyed(photo):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right by a quarter
    content = saved(Image.fromarray(photo), exif=exif)
    np.testing.assert_array_equal(ImageReader()(content), np.rot90(photo, -1))


# Kinds of images beside grey and colour, each as a file that may hold it.
MODES = {
    **{"1": "png", "LA": "png", "P": "png", "I;16": "png", "I": "tiff", "I;16B": "tiff"},
    **{"PA": "tiff", "CMYK": "jpeg", "YCbCr": "jpeg", "LAB": "tiff", "RGBX": "tiff"},
}


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_comes_to_any_channels(photo, mode, channels):
    if mode.startswith("I"):
        levels = photo[..., 0].astype(">u2" if mode == "I;16B" else "<u2") * 256
        image = Image.fromarray(levels.astype(np.int32) if mode == "I" else levels)
    elif mode == "PA":
        image = Image.fromarray(photo).convert("P").convert("PA")
    else:
        image = Image.fromarray(photo).convert(mode)
    content = saved(image, MODES[mode])
    colour = not mode.startswith("I") and mode not in ("1", "LA")
    wanted = np.broadcast_to((photo @ [0.299, 0.587, 0.114])[..., None], photo.shape)
    wanted = photo if colour and channels > 1 else wanted
    if mode.startswith("I"):
        wanted = photo[..., :1]
    found = ImageReader(channels)(content)
    assert found.shape == (47, 61, channels)
    if mode == "1":
        assert set(np.unique(found[..., :3])) == {0, 255}
    else:  # of few colours, or lossy
        assert np.abs(found[..., :3].astype(float) - wanted[..., : min(channels, 3)]).mean() < 16
    if channels == 4:
        assert (found[..., 3] == 255).all()


def test_levels_without_a_range_are_refused():
    image = Image.fromarray(np.zeros((3, 3), np.float32))
    with pytest.raises(ValueError, match="floating-point levels"):
        ImageReader()(saved(image, "tiff"))


def test_more_than_sixteen_bits_are_refused():
    image = Image.fromarray(np.full((3, 3), 2**16, np.int32))
    with pytest.raises(ValueError, match="more than 16 bits"):
        ImageReader()(saved(image, "tiff"))


def test_border_is_zeros(photo):
    image = ImageReader(border=2)(saved(Image.fromarray(photo)))
    assert image.shape == (51, 65, 3)
    np.testing.assert_array_equal(image[2:-2, 2:-2], photo)
    assert image.sum() == photo.sum()


@pytest.mark.parametrize("border", [0, 2])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_many_files_read_as_one_by_one(photo, channels, border, tmp_path):
    images = [Image.fromarray(photo[:n, :n]).convert(m) for n in (9, 30) for m in CHANNELS.values()]
    files = [saved(x, f) for x in images for f in ("png", "tiff")]
    (tmp_path / "a.png").write_bytes(files[0])
    files.append(tmp_path / "a.png")
    for geometry in (None, functools.partial(stretch, height=8, width=7)):
        reader = ImageReader(channels, geometry, border)
        for image, file in zip(reader.many(iter(files)), files, strict=True):
            np.testing.assert_array_equal(image, reader(file))


def test_crop_and_resize_looks_at_nothing_outside_the_box(photo):
    image = Image.fromarray(photo)
    box = (5, 7, 55, 45)
    inside = Image.fromarray(photo[7:45, 5:55])
    expected = np.asarray(inside.resize((20, 16), BILINEAR))
    np.testing.assert_array_equal(np.asarray(crop_and_resize(image, box, 16, 20)), expected)


@pytest.mark.parametrize(
    ("height", "width", "new_size"),
    [(20, 20, (25, 20)), (94, 94, (122, 94)), (20, 40, (40, 30)), (47, 61, (61, 47))],
)
def test_cover_keeps_proportions_and_the_middle_is_cut(photo, height, width, new_size):
    image = Image.fromarray(photo)
    resized = image.resize(new_size, BILINEAR)
    np.testing.assert_array_equal(np.asarray(cover(image, height, width)), np.asarray(resized))
    left, top = round((new_size[0] - width) / 2), round((new_size[1] - height) / 2)
    expected = np.asarray(resized)[top : top + height, left : left + width]
    actual = np.asarray(cover_and_crop(image, height, width))
    np.testing.assert_array_equal(actual, expected)


def test_stretch_ignores_proportions(photo):
    expected = Image.fromarray(photo).resize((30, 10), BILINEAR)
    actual = stretch(Image.fromarray(photo), 10, 30)
    np.testing.assert_array_equal(np.asarray(actual), np.asarray(expected))


@pytest.mark.parametrize(("height", "width", "inner"), [(32, 32, (32, 25)), (20, 60, (26, 20))])
def test_pad_shows_all_of_the_image_between_black(photo, height, width, inner):
    padded = np.asarray(contain_and_pad(Image.fromarray(photo), height, width))
    assert padded.shape == (height, width, 3)
    resized = np.asarray(Image.fromarray(photo).resize(inner, BILINEAR))
    top, left = (height - inner[1]) // 2, (width - inner[0]) // 2
    part = padded[top : top + inner[1], left : left + inner[0]]
    np.testing.assert_array_equal(part, resized)
    assert padded.sum() == resized.sum()
