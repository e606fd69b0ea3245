"""Official `checkpoint.pt` files: what is read, and what is refused."""

import argparse
import os

import numpy as np
import pytest

from nvae_jax.errors import ConfigError
from nvae_jax.interop.checkpoint import read_checkpoint

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip file", "before PyTorch 1.6"])
def test_reads_tensors_arguments_and_counters(tmp_path, zipped):
    path = tmp_path / "checkpoint.pt"
    weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    content = {
        "state_dict": {"z.weight": weight, "a.bias": torch.tensor(7)},
        "args": argparse.Namespace(dataset="mnist", num_nf=2, data=None),
        "optimizer": {"state": {0: {"step": 5, "exp_avg": torch.ones(2)}}, "param_groups": []},
        "global_step": 12,
        "scheduler": {"base_lrs": [0.01]},
    }
    torch.save(content, path, _use_new_zipfile_serialization=zipped)

    checkpoint = read_checkpoint(path)

    assert list(checkpoint.state_dict) == ["z.weight", "a.bias"]  # in the order they were saved
    np.testing.assert_array_equal(checkpoint.state_dict["z.weight"], [[0, 1, 2], [3, 4, 5]])
    assert all(isinstance(x, np.ndarray) for x in checkpoint.state_dict.values())
    assert checkpoint.args == {"dataset": "mnist", "num_nf": 2, "data": None}
    assert checkpoint.optimizer["state"][0]["step"] == 5
    assert isinstance(checkpoint.optimizer["state"][0]["exp_avg"], np.ndarray)
    assert checkpoint.step == 12


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip file", "before PyTorch 1.6"])
@pytest.mark.parametrize("place", ["args", "state_dict", "scheduler"])
def test_code_in_a_file_is_refused_and_does_not_run(tmp_path, place, zipped):
    target, path = tmp_path / "run", tmp_path / "checkpoint.pt"
    content = {"state_dict": {}, "args": argparse.Namespace()} | {place: Payload(target)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"is refused, and nothing in it was run: .*system"):
        read_checkpoint(path)
    assert not target.exists()
    # It would have run otherwise.
    torch.load(path, weights_only=False)
    assert target.exists()


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip file", "before PyTorch 1.6"])
def test_a_truncated_file_is_called_damaged(tmp_path, part, zipped):
    path = tmp_path / "checkpoint.pt"
    content = {"state_dict": {"a": torch.ones(1000)}, "args": argparse.Namespace(x=1)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    os.truncate(path, int(part * path.stat().st_size))
    with pytest.raises(
        ValueError, match=r"checkpoint\.pt is (damaged or not a PyTorch file|refused)"
    ):
        read_checkpoint(path)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(ConfigError, match=r"checkpoint\.pt does not exist; allowed: an official"):
        read_checkpoint(path)
    path.write_text("a letter")
    with pytest.raises(ValueError, match="not a PyTorch file"):
        read_checkpoint(path)
    for content, lacks in [([1], "state_dict"), ({"state_dict": {}}, "args")]:
        torch.save(content, path)
        with pytest.raises(ValueError, match=f"not a checkpoint of .* run: no {lacks}$"):
            read_checkpoint(path)
