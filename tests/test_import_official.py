"""The run that an official `checkpoint.pt` becomes."""

import argparse
import contextlib
import functools
import json
import os
import sys

import goldens
import jax
import numpy as np
import pytest
from commands import Commands
from official_models import ARGS, exported
from PIL import Image
from xla import xla_flags

from configs import ffhq256
from nvae_jax.config.changes import changes
from nvae_jax.config.run import read_run
from nvae_jax.config.training import TrainingConfig
from nvae_jax.data.sources import data_config
from nvae_jax.interop import official
from nvae_jax.interop.layout import model_entries
from nvae_jax.interop.official import config_from_args, import_state_dict
from nvae_jax.tools import import_official
from nvae_jax.training.optimizer import make_optimizer
from nvae_jax.training.state import init_state
from nvae_jax.workdir import Workdir

torch = pytest.importorskip("torch")

# How the paper trained on FFHQ.
RECIPE = {
    "epochs": 200,
    "batch_size": 4,
    "num_process_per_node": 8,
    "num_proc_node": 3,
    "learning_rate": 8e-3,
    "learning_rate_min": 1e-4,
    "warmup_epochs": 5,
    "weight_decay": 3e-4,
    "weight_decay_norm": 1e-1,
    "weight_decay_norm_init": 1.0,
    "weight_decay_norm_anneal": True,
    "kl_anneal_portion": 0.3,
    "kl_const_portion": 1e-4,
    "save": "/somewhere",
}


def write(path, state_dict, args, **rest):
    tensors = {name: torch.from_numpy(np.array(x)) for name, x in state_dict.items()}
    content = {"epoch": 3, "state_dict": tensors, "args": argparse.Namespace(**args), **rest}
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def golden():
    """A golden configuration's arguments and state dict."""
    args = goldens.from_json(goldens.load("mnist_tiny")["args"])
    return args, goldens.under("mnist_tiny", "sd")


def moments(state_dict, args, step):
    """An optimiser's state whose moments are 2 and 3 times the parameters."""
    entries = model_entries(config_from_args(args))
    params = {entry.official for entry in entries if entry.path[0] == "params"}
    tensors = [torch.from_numpy(np.array(x)) for name, x in state_dict.items() if name in params]
    state = {i: {"step": step, "exp_avg": 2 * x, "exp_inf": 3 * x} for i, x in enumerate(tensors)}
    return {"state": state, "param_groups": [{"lr": 0.01, "params": list(range(len(tensors)))}]}


def run(monkeypatch, path, workdir):
    monkeypatch.setattr(sys, "argv", ["import_official", str(path), "--workdir", str(workdir)])
    import_official.main()


def test_the_command_writes_a_run_to_go_on_with(golden, tmp_path, monkeypatch, capsys):
    path, target = tmp_path / "checkpoint.pt", tmp_path / "run"
    args, state_dict = golden
    optimizer = moments(state_dict, args, step=70)
    recipe = RECIPE | {"kl_anneal_portion": 0.5, "kl_const_portion": 1e-3}
    write(path, state_dict, args | recipe, optimizer=optimizer, global_step=70)

    run(monkeypatch, path, target)

    assert "132,138 parameters at step 70" in capsys.readouterr().out
    model, variables = import_state_dict(state_dict, args)
    imported = read_run(Workdir(target).load_config())
    training = imported.training
    with contextlib.closing(Workdir(target).checkpoints) as checkpoints:
        assert imported.model == model
        assert imported.data == data_config("mnist")
        assert training == TrainingConfig(
            epochs=200,
            batch_size=96,
            learning_rate=8e-3,
            regularization=0.1,
            initial_regularization=1.0,
            kl_warmup=0.5,
            kl_constant=1e-3,
        )
        # Exactly what the training loop restores.
        images = jax.ShapeDtypeStruct((2, *model.image_shape), np.float32)
        init = functools.partial(init_state, model, make_optimizer(training, 9), np.uint32(0))
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
            jax.eval_shape(init, images),
        )
        state, _ = checkpoints.restore(abstract)
        # And what evaluation does.
        parts = {"params": abstract.params, "batch_stats": abstract.batch_stats}
        restored, _ = checkpoints.restore(parts, partial=True)

    jax.tree.map(np.testing.assert_array_equal, restored, variables)
    assert state.step == 70
    jax.tree.map(np.testing.assert_array_equal, state.params, variables["params"])
    adamax, schedule = state.opt_state["adamax"], state.opt_state["learning_rate"]
    assert (adamax.count, schedule.count) == (70, 70)
    for moment, factor in ((adamax.mu, 2), (adamax.nu, 3)):
        expected = jax.tree.map(lambda x, factor=factor: factor * x, variables["params"])
        jax.tree.map(np.testing.assert_array_equal, moment, expected)
    spectral = state.opt_state["spectral"]
    assert spectral.updates == 0  # so that the first update iterates longer
    for vectors in jax.tree.leaves((spectral.u, spectral.v)):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, rtol=1e-5)


def test_without_an_optimizer_training_starts_from_the_weights(tmp_path):
    path = tmp_path / "checkpoint.pt"
    write(path, exported("one group"), ARGS | {"num_groups_per_scale": 1, "num_nf": 1})
    imported, state = import_official.import_checkpoint(path)
    assert state.step == 0
    assert imported.training.warmup_epochs == 5
    adamax = state.opt_state["adamax"]
    assert adamax.count == 0
    assert not any(x.any() for x in jax.tree.leaves((adamax.mu, adamax.nu)))


def test_training_without_annealed_regularisation():
    args = {"weight_decay_norm": 0.1, "weight_decay_norm_init": 1.0, "batch_size": 32}
    training = import_official.training_from_args(args | {"weight_decay_norm_anneal": False})
    assert (training.regularization, training.initial_regularization) == (0.1, None)
    assert training.batch_size == 32
    assert import_official.training_from_args({"weight_decay_norm": 0.0}).regularization < 1e-20
    with pytest.raises(ValueError, match=r"training\.epochs is -3; allowed"):
        import_official.training_from_args({"epochs": -3})


def test_the_papers_arguments_become_our_configuration_of_the_paper():
    args = ARGS | RECIPE
    args |= {
        "dataset": "ffhq",
        "num_nf": 2,
        "num_x_bits": 5,
        "num_latent_scales": 5,
        "num_groups_per_scale": 16,
        "num_latent_per_group": 20,
        "ada_groups": True,
        "min_groups_per_scale": 4,
        "num_channels_enc": 30,
        "num_channels_dec": 30,
        "num_cell_per_cond_enc": 2,
        "num_cell_per_cond_dec": 2,
    }
    imported = import_official.run_from_args(args)
    ours = read_run(ffhq256.get_config())
    # So the run may be continued with ours, once that is accepted.
    assert [change.name for change in changes(imported, ours)] == ["model.dtype"]


def truncate(path, args, state_dict):
    os.truncate(path, path.stat().st_size // 2)


def claim_another_dataset(path, args, state_dict):
    write(path, state_dict, args | {"dataset": "cifar10"})


def rename(path, args, state_dict):
    tensors = {name.replace("stem.bias", "stern.bias"): x for name, x in state_dict.items()}
    write(path, tensors, args)


def reshape(path, args, state_dict):
    write(path, state_dict | {"stem.bias": state_dict["stem.bias"][:3]}, args)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "damaged"),
        (claim_another_dataset, "stem.weight has shape (8, 1, 3, 3), not (8, 3, 3, 3)"),
        (rename, "stem.bias is missing; stern.bias is not a tensor of this model"),
        (reshape, "stem.bias has shape (3,), not (8,)"),
    ],
)
def test_the_command_says_what_is_wrong_and_writes_nothing(
    golden, tmp_path, monkeypatch, capsys, damage, message
):
    path, target = tmp_path / "checkpoint.pt", tmp_path / "run"
    args, state_dict = golden
    damage(write(path, state_dict, args), args, state_dict)
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, path, target)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert not target.exists()


def test_a_run_is_never_overwritten(golden, tmp_path, monkeypatch, capsys):
    path, target = tmp_path / "checkpoint.pt", tmp_path / "run"
    args, state_dict = golden
    write(path, state_dict, args)
    run(monkeypatch, path, target)
    before = json.loads((target / "config.json").read_text())
    with pytest.raises(SystemExit):
        run(monkeypatch, path, target)
    assert "allowed: a new folder, which holds no run" in capsys.readouterr().err
    assert json.loads((target / "config.json").read_text()) == before


def test_an_interrupted_import_is_no_run_and_is_made_again(golden, tmp_path, monkeypatch):
    path, target = tmp_path / "checkpoint.pt", tmp_path / "run"
    args, state_dict = golden
    write(path, state_dict, args)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Workdir, "save_config", stop)
        with pytest.raises(SystemExit):
            run(patch, path, target)
    assert not Workdir(target).has_config()
    run(monkeypatch, path, target)
    assert Workdir(target).has_config()
    assert len(Workdir(target).checkpoints.steps()) == 1


def test_an_imported_checkpoint_is_sampled_without_its_dataset(golden, tmp_path, monkeypatch):
    args, state_dict = golden
    run(monkeypatch, write(tmp_path / "checkpoint.pt", state_dict, args), tmp_path / "run")
    commands = Commands(tmp_path, XLA_FLAGS=xla_flags(1), TFDS_DATA_DIR=str(tmp_path / "nothing"))
    arguments = ["--mode=sample", "--workdir=run", "--num_images=2", "--batch_size=2"]
    outcome = commands.run("nvae_jax.main", *arguments)
    commands.close()
    assert outcome.code == 0, outcome.stderr
    with Image.open(tmp_path / "run" / "sample" / "samples.png") as picture:
        assert np.asarray(picture).std() > 1


def test_every_official_dataset_is_one_of_ours():
    for name, options in official._DATASETS.items():
        assert official.data_from_args({"dataset": name}) == data_config(**options)
