"""The modes `encode`, `decode` and `reconstruct` against the model's own forward pass."""

import functools

import numpy as np
import pytest
from tiny import ONE_DEVICE, RUN_CONFIG, make_run

from nvae_jax.errors import ConfigError
from nvae_jax.evaluation.inputs import load_images
from nvae_jax.evaluation.latents import chosen_groups, inputs_of, read_latents, top_groups
from nvae_jax.evaluation.sampling import decoded_mean
from nvae_jax.evaluation.trained import image_keys, open_run
from nvae_jax.model import NVAE
from nvae_jax.modes.decode import DecodeOptions, decode
from nvae_jax.modes.encode import EncodeOptions, encode
from nvae_jax.modes.reconstruct import ReconstructOptions, reconstruct

# One size of batches for all, so that the functions are compiled once.
Options = functools.partial(DecodeOptions, batch_size=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder, its model, four images, and their reconstructions by a forward pass."""
    path = make_run(tmp_path_factory.mktemp("run"))
    model = open_run(path, ONE_DEVICE)
    x = load_images(model, ["test:0-3"], "images")

    def forward(variables, batch):
        output = NVAE(model.config).apply(
            variables, batch["x"], False, image_keys(3, batch["index"])
        )
        return decoded_mean(model.config, output.logits)

    batch = {"x": x, "index": np.arange(4, dtype=np.uint32)}
    return path, model, x, np.asarray(model.compile(forward)(model.variables, batch))


def test_latents_decode_to_the_reconstruction_of_the_forward_pass(run):
    path, model, _, reconstructions = run
    file = encode(open_run(path, ONE_DEVICE), EncodeOptions(("test:0-3",), seed=3, batch_size=2))
    for space in ("latents", "noise"):
        images = decode(open_run(path, ONE_DEVICE), Options(file, space=space))
        np.testing.assert_allclose(images, reconstructions, atol=1e-4)
    assert (path / "decode" / "images.png").exists()

    # What is not taken from the file is the prior's: at temperature 0, its mean.
    options = Options(file, scales=(0,), temperature=(0.0,))
    coarse = decode(open_run(path, ONE_DEVICE), options)
    by_noise = decode(open_run(path, ONE_DEVICE), Options(file, "noise", (0,), temperature=(0.0,)))
    np.testing.assert_allclose(coarse, by_noise, atol=1e-4)
    assert np.abs(coarse - reconstructions).max() > 0.01

    latents = read_latents(model.config, file)
    arrays = {f"values_{g:02d}": z[:, :1] for g, z in enumerate(latents.values)}
    np.savez(path / "other.npz", **arrays)
    with pytest.raises(ValueError, match=r"shapes of the latents in .* \[\(4, 4, 2\)"):
        read_latents(model.config, path / "other.npz")


def test_reconstructions_show_what_the_top_groups_hold(run):
    path, model, x, reconstructions = run
    rows = reconstruct(
        open_run(path, ONE_DEVICE), ReconstructOptions(("test:0-3",), seed=3, batch_size=2)
    )
    assert rows.shape == (4, 1 + 3, 28, 28, 1)
    np.testing.assert_array_equal(rows[:, 0], inputs_of(model.config, x))
    np.testing.assert_allclose(rows[:, 3], reconstructions, atol=1e-4)
    differs = np.abs(rows[:, 1:3] - rows[:, 3:]).max((2, 3, 4))
    assert (differs > 1e-3).all()
    by_groups = ReconstructOptions(("test:0-3",), (0, 2, 4), "groups", seed=3, batch_size=2)
    np.testing.assert_allclose(reconstruct(open_run(path, ONE_DEVICE), by_groups), rows, atol=1e-5)


def test_groups_by_number(run):
    config = run[1].config
    assert chosen_groups(config, None, None).tolist() == [True] * 4
    assert chosen_groups(config, (0,), (3,)).tolist() == [True, True, False, True]
    assert top_groups(config, (1, 4), "groups").sum(1).tolist() == [1, 4]
    assert top_groups(config, None, "scales").sum(1).tolist() == [0, 2, 4]
    with pytest.raises(ValueError, match=r"scales is \(2,\); allowed: 0 to 1"):
        chosen_groups(config, (2,), None)
    with pytest.raises(ValueError, match=r"keep is \(5,\); allowed: 0 to 4 groups"):
        top_groups(config, (5,), "groups")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.astype(str), "allowed: finite floating-point numbers"),
        (lambda x: x.astype(complex), "allowed: finite floating-point numbers"),
        (lambda x: x * np.nan, "allowed: finite floating-point numbers"),
        (lambda x: x[:0], r"is \[0.*allowed: one number above 0"),
        (lambda x: x[:1], r"is \[1, 2\]; allowed: one number above 0"),
    ],
)
def test_latents_that_are_no_numbers_of_images_are_refused(tmp_path, change, message):
    arrays = {
        f"{kind}_{g:02d}": np.ones((2, *shape), np.float32)
        for kind in ("values", "noise")
        for g, shape in enumerate(RUN_CONFIG.latent_shapes)
    }
    arrays["values_00"] = change(arrays["values_00"])
    if message.startswith(r"is \[0"):
        arrays = {name: array[:0] for name, array in arrays.items()}
    np.savez(tmp_path / "latents.npz", **arrays)
    with pytest.raises(ConfigError, match=message):
        read_latents(RUN_CONFIG, tmp_path / "latents.npz")


@pytest.mark.parametrize("array", [np.zeros((8, 2, 3)), np.float32(1)])
def test_another_kind_of_file_is_refused(tmp_path, array):
    np.save(tmp_path / "latents.npy", array)
    with pytest.raises(ConfigError, match=r"latents.npy', which cannot be read"):
        read_latents(RUN_CONFIG, tmp_path / "latents.npy")
