import sys

import numpy as np
import pytest
from PIL import Image

from nvae_jax.tools import compare
from nvae_jax.workdir import Workdir


@pytest.fixture
def runs(tmp_path):
    """Two runs validated at steps 10, 20, 30 and 10, 30, and one that never was."""
    for name, values in (("a", {10: 5.0, 20: 4.0, 30: 3.0}), ("b", {10: 6.0, 30: 2.0}), ("c", {})):
        workdir = Workdir(tmp_path / name)
        workdir.records.write_metrics(5, {"train/nelbo": 1.0})
        for step, value in values.items():
            workdir.records.write_metrics(step, {"validation/nelbo": value})
    return tmp_path


def test_curves_have_the_steps_that_all_runs_of_a_group_have(runs):
    curves = compare.read_curves({"both": [runs / "a", runs / "b"], "one": [runs / "a"]})
    steps, values = curves["both"]
    np.testing.assert_array_equal(steps, [10, 30])
    np.testing.assert_array_equal(values, [[5, 3], [6, 2]])
    np.testing.assert_array_equal(curves["one"][0], [10, 20, 30])


def test_run_without_validation_is_named(runs):
    with pytest.raises(ValueError, match=r"/c has no validation"):
        compare.read_curves({"x": [runs / "a", runs / "c"]})


def test_command_draws_and_prints_the_last_values(runs, monkeypatch, capsys):
    picture = runs / "picture.png"
    arguments = [f"both={runs / 'a'},{runs / 'b'}", "--output", str(picture)]
    monkeypatch.setattr(sys, "argv", ["compare", *arguments])
    compare.main()
    printed = capsys.readouterr().out
    assert printed == "both: 2.50 nats at step 30, from 2.00 to 3.00 over 2 run(s)\n"
    assert np.asarray(Image.open(picture)).std() > 0
