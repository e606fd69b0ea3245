"""The mode `edit`: what changes, and what does not."""

import functools

import numpy as np
import pytest
from tiny import ONE_DEVICE, make_run

from nvae_jax.evaluation.inputs import load_images
from nvae_jax.evaluation.latents import decode_latents, encode_images, inputs_of
from nvae_jax.evaluation.trained import open_run
from nvae_jax.modes.edit import EditOptions, edit
from nvae_jax.modes.reconstruct import ReconstructOptions, reconstruct

NAMES = ("test:0-2",)
# One size of batches for all, so that the functions are compiled once.
Options = functools.partial(EditOptions, batch_size=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder, the images as they are shown, and their reconstructions."""
    path = make_run(tmp_path_factory.mktemp("run"))
    options = ReconstructOptions(NAMES, (4,), "groups", posterior_temperature=0.0, batch_size=2)
    rows = reconstruct(open_run(path, ONE_DEVICE), options)
    return path, rows[:, 0], rows[:, 1]


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def far(actual, expected):
    assert (np.abs(actual - expected).max((-3, -2, -1)) > 1e-3).all()


def test_mixes_lead_from_the_second_image_to_the_first(run):
    path, images, reconstructions = run
    rows = edit(open_run(path, ONE_DEVICE), Options("mix", NAMES))
    assert rows.shape == (2, 2 + 3, 28, 28, 1)
    close(rows[:, 0], images[:-1])
    close(rows[:, 1], images[1:])
    close(rows[:, 2], reconstructions[1:])  # nothing of the first one
    close(rows[:, 4], reconstructions[:-1])
    far(rows[:, 3], rows[:, 2])
    far(rows[:, 3], rows[:, 4])


@pytest.mark.parametrize("space", ["latents", "noise"])
def test_variations_differ_in_the_chosen_groups_alone(run, space):
    path, images, reconstructions = run
    options = {"space": space, "variations": 2, "seed": 1}
    rows = edit(open_run(path, ONE_DEVICE), Options("vary", NAMES, scales=(1,), **options))
    close(rows[:, 0], images)
    close(rows[:, 1], reconstructions)
    far(rows[:, 2], reconstructions)
    far(rows[:, 2], rows[:, 3])
    kept = edit(open_run(path, ONE_DEVICE), Options("vary", NAMES, groups=(), **options))
    close(kept[:, 2], reconstructions)


def test_an_attribute_is_a_difference_of_mean_latents(run):
    path, images, reconstructions = run
    sets = {"having": ("train:0-2",), "lacking": ("train:3-4",)}
    options = Options("attribute", NAMES, strengths=(0.0, 1.5), scales=(0,), **sets)
    rows = edit(open_run(path, ONE_DEVICE), options)
    close(rows[:, 0], images)
    close(rows[:, 1], reconstructions)
    model = open_run(path, ONE_DEVICE)
    x, having, lacking = (
        encode_images(model, load_images(model, names, "images"), 0.0, batch_size=2).values
        for names in (NAMES, *sets.values())
    )
    moved = [
        z + 1.5 * (g < 2) * (a.mean(0) - b.mean(0))
        for g, (z, a, b) in enumerate(zip(x, having, lacking, strict=True))
    ]
    close(rows[:, 2], decode_latents(model, moved, batch_size=2))


def test_inpainting_leaves_the_known_pixels(run):
    path, images, _ = run
    region = (4, 6, 10, 12)
    options = Options("inpaint", NAMES, region=region, rounds=2, variations=2)
    rows = edit(open_run(path, ONE_DEVICE), options)
    unknown = np.zeros((28, 28, 1), bool)
    unknown[4:14, 6:18] = True
    assert (rows[:, 1][:, unknown[..., 0]] == 0.5).all()
    for column in range(4):
        close(np.where(unknown, 0, rows[:, column]), np.where(unknown, 0, images))
    filled = rows[:, 2:]
    assert ((filled > 0) & (filled < 1))[:, :, unknown[..., 0]].all()  # means
    far(filled[:, 0], filled[:, 1])

    # One round is the decoding of one draw given the image without the region.
    model = open_run(path, ONE_DEVICE)
    x = load_images(model, NAMES, "images").copy()
    x[:, 2:30, 2:30] = rows[:, 1]
    once = edit(
        open_run(path, ONE_DEVICE), Options("inpaint", NAMES, region=region, rounds=1, variations=1)
    )
    decoded = decode_latents(model, encode_images(model, x, batch_size=2).values, batch_size=2)
    close(once[:, 2], np.where(unknown, decoded, inputs_of(model.config, x)))


def test_impossible_edits_are_refused(run):
    with pytest.raises(ValueError, match=r"region is None; allowed: top, left, height and width"):
        Options("inpaint")
    with pytest.raises(ValueError, match=r"having is \(\); allowed: images"):
        Options("attribute", lacking=("test:0",))
    with pytest.raises(ValueError, match=r"region is \(20, 0, 10, 4\); allowed: 1 pixel"):
        edit(open_run(run[0], ONE_DEVICE), Options("inpaint", region=(20, 0, 10, 4)))
    with pytest.raises(ValueError, match="allowed: two images or more"):
        edit(open_run(run[0], ONE_DEVICE), Options("mix", ("test:0",)))
