"""The mode `fid` with cheap features in Inception's place: files, reuse, resumption."""

import json

import jax
import numpy as np
import pytest
from tiny import ONE_DEVICE, make_run

from nvae_jax.evaluation.distances import frechet_distance, gaussian
from nvae_jax.evaluation.trained import image_keys, open_run
from nvae_jax.modes import fid as module
from nvae_jax.modes.fid import FIDOptions, fid
from nvae_jax.workdir.rows import Rows

OPTIONS = FIDOptions("weights", num_images=20, reference_images=30, batch_size=8)


def cheap_features(params, images):
    """Sixteen means of an image's tiles."""
    return params["factor"] * jax.image.resize(images, (len(images), 4, 4, 1), "linear").reshape(
        len(images), 16
    )


def cheap_draw(variables, index, seed, temperatures):
    """In place of samples: noise by number."""
    return jax.vmap(lambda key: jax.random.uniform(key, (28, 28, 1)))(image_keys(seed, index))


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "NUM_FEATURES", 16)
    monkeypatch.setattr(module, "fid_features", cheap_features)
    monkeypatch.setattr(module, "make_draw", lambda config, pixels: cheap_draw)
    weights = {"factor": np.float32(3)}
    monkeypatch.setattr(module, "load_weights", lambda source, sha256: (weights, source))
    return make_run(tmp_path)


def test_distance_is_that_of_the_features_and_the_reference_is_kept(path, monkeypatch):
    report = fid(open_run(path, ONE_DEVICE), OPTIONS)
    reference = np.fromfile(path / "fid" / "reference_train_30.f32", np.float32).reshape(30, 16)
    samples = jax.jit(cheap_draw)(None, np.arange(20, dtype=np.uint32), np.uint32(0), None)
    features = np.asarray(cheap_features({"factor": 3.0}, samples))
    expected = frechet_distance(*gaussian(reference), *gaussian(features))
    np.testing.assert_allclose(report["fid"], expected, rtol=1e-3)
    assert json.loads((path / "fid" / "report_0.json").read_text())["fid"] == report["fid"]
    provenance = json.loads((path / "fid" / "reference_train_30.json").read_text())
    assert provenance["data"] == {"name": "digits"}
    assert provenance["weights_sha256"] == "weights"
    assert not (path / "fid" / "samples_0.f32").exists()

    # A reference that is there is not computed again; another network's is not used.
    marked = reference + np.float32(1)
    marked.tofile(path / "fid" / "reference_train_30.f32")
    moved = fid(open_run(path, ONE_DEVICE), OPTIONS)["fid"]
    expected = frechet_distance(*gaussian(marked), *gaussian(features))
    np.testing.assert_allclose(moved, expected, rtol=1e-3)
    kept = str(path / "fid" / "reference_train_30.f32")
    with pytest.raises(ValueError, match=r"allowed: features by the weights other"):
        fid(open_run(path, ONE_DEVICE), FIDOptions("other", num_images=20, reference=kept))


def test_an_interrupted_run_goes_on(path, monkeypatch):
    model = open_run(path, ONE_DEVICE)
    expected = fid(model, OPTIONS)
    append, added = Rows.append, []

    def interrupted(self, rows):
        if len(self):  # the reference is complete, so these are the second batch of samples
            raise KeyboardInterrupt
        append(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Rows, "append", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fid(model, OPTIONS)
    with (path / "fid" / "samples_0.f32").open("ab") as file:
        file.write(b"half a row")

    monkeypatch.setattr(Rows, "append", lambda self, x: (added.append(len(x)), append(self, x)))
    assert fid(model, OPTIONS) == expected
    assert added == [8, 4]  # after the first eight
