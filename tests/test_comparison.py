"""The comparison of families and objectives: entries that are trained alike, and their page."""

import json
import re

import numpy as np
import pytest
from tiny import CLASSES, make_run

from nvae_jax.errors import ConfigError
from nvae_jax.evaluation.random_features import random_features
from nvae_jax.evaluation.trained import open_run
from nvae_jax.measuring import comparison
from nvae_jax.measuring.comparison import COLUMNS, compare, measure, read_entries
from nvae_jax.objectives.table import OBJECTIVES
from nvae_jax.workdir import Workdir

DIGITS, PLAIN = "configs/digits.py", "configs/digits_conv_vae.py"


def entries(folder, *given):
    file = folder / "list.json"
    file.write_text(json.dumps(given))
    return read_entries(str(file))


def test_entries_are_configurations_with_settings(tmp_path):
    nvae, mmd = entries(
        tmp_path,
        {"title": "NVAE", "config": DIGITS},
        {"title": "MMD", "config": f"{PLAIN}:mmd", "set": {"objective.kernel": "rbf"}},
    )
    assert (nvae.with_seed(1).model.name, nvae.with_seed(1).training.seed) == ("nvae", 1)
    assert (mmd.run.objective.name, mmd.run.objective.kernel) == ("mmd", "rbf")
    assert mmd.folder(2) == "mmd_2"


def test_the_list_of_the_documentation_can_be_compared():
    names = {entry.run.objective.name for entry in read_entries("docs/comparison/digits.json")}
    assert names == set(OBJECTIVES)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([{"title": "a"}], "list is .* which cannot be read"),
        ([], r"list is \[\]; allowed: one title"),
        ([{"title": "a", "config": DIGITS}] * 2, "list is .*; allowed: one title"),
        ([{"title": "a", "config": "absent.py"}], "absent.py"),
        (
            [{"title": "a", "config": DIGITS, "set": {"model.depth": 1}}],
            "config.model.depth is unknown",
        ),
        (
            [
                {"title": "a", "config": DIGITS},
                {"title": "b", "config": PLAIN, "set": {"training.epochs": 1}},
            ],
            r"training.epochs is \[26, 1\]; allowed: the same",
        ),
        (
            [{"title": "a", "config": DIGITS}, {"title": "b", "config": "configs/photos32.py"}],
            "data is .*; allowed: the same",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, given, message):
    with pytest.raises(ConfigError, match=message):
        entries(tmp_path, *given)


def test_random_features_are_the_same_everywhere_and_tell_images_apart():
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(5, 28, 28, 1)).astype(np.float32)
    features = random_features(images, batch_size=2)
    assert features.shape == (5, 256)
    np.testing.assert_allclose(features, random_features(images), rtol=1e-5, atol=1e-6)
    assert np.linalg.norm(features[0] - features[1]) > 1e-3


def test_a_trained_run_is_measured(tmp_path):
    make_run(tmp_path, CLASSES)
    workdir = Workdir(tmp_path)
    validated = {"nelbo": 7.0, "reconstruction": 5.0, "kl": 2.0, "nelbo_bits_per_dim": 0.1}
    workdir.records.write_metrics(7, {f"validation/{name}": x for name, x in validated.items()})
    workdir.records.write_metrics(7, {"train/steps_per_second": 4.0})
    values = measure(open_run(tmp_path))
    assert set(values) == set(COLUMNS)
    assert all(np.isfinite(x) for x in values.values())
    assert (values["nelbo"], values["kl"], values["seconds"]) == (7.0, 2.0, 0.25)
    assert 0 <= values["probe"] <= 1
    assert 0.1 <= values["class_accuracy"] <= 1
    names = {path.name for path in (tmp_path / "codes").iterdir()}
    assert names == {"test.json", "test.png", "test_classes.png"}


def test_the_page_has_means_and_spreads(tmp_path, monkeypatch):
    trained = []

    def train(run, path):
        path.mkdir(parents=True)
        trained.append((run.objective.name, run.training.seed))
        return {}

    values = iter([{"nelbo": 1.0, "mmd": 0.5}, {"nelbo": 3.0, "mmd": 0.5}, {"mmd": 1.0}] * 2)
    monkeypatch.setattr(comparison, "train", train)
    monkeypatch.setattr(comparison, "_measured", lambda path: next(values))
    some = entries(
        tmp_path,
        {"title": "plain", "config": PLAIN},
        {"title": "WAE", "config": f"{PLAIN}:wae_gan"},
    )
    page = compare(some, 2, tmp_path / "out")
    assert trained == [("elbo", 0), ("elbo", 1), ("wae_gan", 0), ("wae_gan", 1)]
    rows = [re.split(r"\s*\|\s*", line.strip("| ")) for line in page.splitlines() if "|" in line]
    assert rows[0][-2:] == [
        "NELBO, nats",
        "MMD² to the prior",
    ]
    assert rows[2] == ["plain", "2.00 ± 1.41", "0.50000"]
    assert rows[3] == ["WAE", "1.00", "0.75000 ± 0.35355"]
