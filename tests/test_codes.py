"""The mode `codes`: a report that adds up, with pictures, for every family."""

import numpy as np
import pytest
from tiny import CLASSES, PLAIN, RUN_CONFIG, make_run

from nvae_jax.evaluation.trained import open_run
from nvae_jax.modes.codes import CodesOptions, codes


@pytest.mark.parametrize("config", [RUN_CONFIG, PLAIN, CLASSES])
def test_every_family_has_a_report(config, tmp_path):
    report = codes(open_run(make_run(tmp_path, config)), CodesOptions(images=200))
    assert [group["latents"] for group in report["groups"]] == [
        int(np.prod(shape)) for shape in config.latent_shapes
    ]
    for group in report["groups"]:
        assert 0 <= group["active"] <= group["latents"]
        assert np.isfinite(group["mmd"])
        assert 0 <= group["probe"]["accuracy"] <= 1
    # A hierarchy has no one code whose information could be told from all codes.
    assert ("information" in report) == (config is not RUN_CONFIG)
    if information := report.get("information"):
        parts = ("mutual_information", "total_correlation", "dimension_wise")
        total = sum(information[part] for part in parts)
        np.testing.assert_allclose(total, information["kl"], rtol=1e-4)
    assert ("classes" in report) == (config is CLASSES)
    names = {path.name for path in (tmp_path / "codes").iterdir()}
    assert names == {"test.json", "test.png"} | (
        {"test_classes.png"} if config is CLASSES else set()
    )
