"""The mode `evaluate`: a report that adds up, and goes on after an interruption."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import ONE_DEVICE, RUN_CONFIG, make_run

from nvae_jax.evaluation.trained import open_run
from nvae_jax.modes import evaluate as module
from nvae_jax.modes.evaluate import EvaluateOptions, evaluate
from nvae_jax.workdir.rows import Rows

OPTIONS = EvaluateOptions(draws=3, images=7, batch_size=3)


def cheap_likelihood(config, counts, draws_at_once, seed):
    """In place of `make_image_likelihood`: numbers of an image, without a network."""

    def likelihood(variables, x, index):
        sums = x.sum((1, 2, 3))
        kl = jnp.arange(8.0).reshape(4, 2) / 40 + seed / 10
        return {
            "reconstruction": sums,
            "kl_per_channel": kl * (1 + index[:, None, None] % 2),
            "bounds": jnp.stack([sums - i for i in range(len(counts))], axis=1),
            "sampled_nelbo": sums,
        }

    return likelihood


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = make_run(tmp_path_factory.mktemp("run"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(module, "make_image_likelihood", cheap_likelihood)
        return path, evaluate(open_run(path, ONE_DEVICE), OPTIONS)


def test_report_is_that_of_its_images(run):
    path, result = run
    index = jnp.arange(7)
    test = open_run(path, ONE_DEVICE).dataset.test
    levels = jnp.stack([test[i] for i in range(7)])
    x = RUN_CONFIG.image.evaluation_pixels(levels, index)
    scores = cheap_likelihood(RUN_CONFIG, (1, 3), 1, OPTIONS.seed)(None, x, index)
    kl = np.asarray(scores["kl_per_channel"], np.float64)
    nelbo = scores["reconstruction"] + kl.sum((1, 2))
    np.testing.assert_allclose(result["per_image"]["nelbo"], nelbo, rtol=1e-5)
    np.testing.assert_allclose(result["per_image"]["bound"], scores["bounds"][:, 1], rtol=1e-5)
    np.testing.assert_allclose(result["nelbo"]["nats"], nelbo.mean(), rtol=1e-5)
    error = np.std(nelbo, ddof=1) / np.sqrt(7)
    np.testing.assert_allclose(result["nelbo"]["standard_error"], error, rtol=1e-4)
    bits = nelbo.mean() / (784 * np.log(2))
    np.testing.assert_allclose(result["nelbo"]["bits_per_dim"], bits, rtol=1e-5)
    assert [bound["draws"] for bound in result["bounds"]] == [1, 3]
    groups = result["groups"]
    assert [(g["scale"], g["height"]) for g in groups] == [(0, 4), (0, 4), (1, 8), (1, 8)]
    np.testing.assert_allclose([g["kl"] for g in groups], kl.sum(-1).mean(0), rtol=1e-4)
    # Means over the images: 0, 0.036, 0.071, 0.107, … and with them five active channels.
    assert [g["active_channels"] for g in groups] == [0, 1, 2, 2]


def test_a_model_is_scored(tmp_path):
    options = EvaluateOptions(images=2, batch_size=2)
    result = evaluate(open_run(make_run(tmp_path), ONE_DEVICE), options)
    assert len(result["per_image"]["nelbo"]) == 2
    parts = result["reconstruction"]["nats"] + result["kl"]["nats"]
    np.testing.assert_allclose(result["nelbo"]["nats"], parts)
    (bound,) = result["bounds"]
    np.testing.assert_allclose(bound["nats"], result["sampled_nelbo"]["nats"], rtol=1e-6)


def test_files_of_a_report(run):
    path, result = run
    assert json.loads((path / "evaluate" / "test_3.json").read_text()) == result
    assert (path / "pictures" / "evaluate_test_3.png").exists()
    assert not (path / "evaluate" / "test_3.progress.f32").exists()
    log = (path / "log.txt").read_text()
    assert "nelbo" in log
    assert "active channels" in log


def test_an_interrupted_evaluation_goes_on(tmp_path, monkeypatch):
    path = make_run(tmp_path)
    model = open_run(path, ONE_DEVICE)
    monkeypatch.setattr(module, "make_image_likelihood", cheap_likelihood)
    expected = evaluate(model, OPTIONS)
    append = Rows.append

    def fail_at_the_second(self, rows):
        if len(self):
            raise KeyboardInterrupt
        append(self, rows)

    monkeypatch.setattr(Rows, "append", fail_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, OPTIONS)
    with (path / "evaluate" / "test_3.progress.f32").open("ab") as file:
        file.write(b"half a row")  # its writer was killed

    added = []
    monkeypatch.setattr(Rows, "append", lambda self, x: (added.append(len(x)), append(self, x)))
    result = evaluate(model, OPTIONS)
    assert added == [3, 1]  # after the first three
    assert {**result, "seconds": 0} == {**expected, "seconds": 0}


def test_more_images_than_there_are_are_refused(run):
    with pytest.raises(ValueError, match="images is 9999; allowed: at most"):
        evaluate(open_run(run[0], ONE_DEVICE), EvaluateOptions(images=9999))
    with pytest.raises(ValueError, match="split is 'valid'; allowed: train, test"):
        EvaluateOptions(split="valid")
