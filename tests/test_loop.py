"""A whole run on a tiny model: its files, its end, and what an interruption changes."""

import dataclasses

import chex
import jax
import numpy as np
import pytest
from PIL import Image
from tiny import STEPS, run_program, tiny_run

from nvae_jax import parallel
from nvae_jax.parallel import make_mesh
from nvae_jax.training.continuing import restore
from nvae_jax.training.loop import train
from nvae_jax.training.optimizer import make_links
from nvae_jax.workdir import Workdir

SHARDED = {"training.parameter_shards": 2}
RUN = tiny_run(**SHARDED)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """On eight devices, of which two share one copy of the parameters."""
    path = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "SMALLEST_SHARDED", 64)
        yield path, train(RUN, str(path))


def test_run_leaves_what_it_promises(run):
    path, last = run
    assert last["step"] == STEPS
    records = Workdir(path).records.read_metrics()
    assert [r["step"] for r in records if "train/nelbo" in r] == [2, 4, 6, 8, 10]
    assert [r["step"] for r in records if "validation/nelbo" in r] == [4, 8, 10]
    names = set().union(*records)
    for name in (
        "train/nelbo_bits_per_dim",
        "train/spectral_penalty",
        "train/batch_norm_penalty",
        "train/regularization",
        "train/learning_rate",
        "train/gradient_norm",
        "train/images_per_second",
        "train/group_kl/1",
        "train/group_active/0",
        "train/group_balance/1",
        "validation/group_kl/0",
    ):
        assert name in names
    log = (path / "log.txt").read_text()
    assert "independent pixels" in log
    assert "left" in log
    assert "s per update: about 0m" in log
    assert "for the 4 updates that are left" in log
    pictures = {p.name for p in (path / "pictures").iterdir()}
    assert pictures == {"samples_000010.png", "reconstructions_000010.png", "curves.png"}
    with Image.open(path / "pictures" / "samples_000010.png") as samples:
        assert samples.size == (2 * (8 * 30 + 2), 2 * (4 * 30 + 2))
    assert any((path / "tensorboard").iterdir())


def test_validation_falls_and_is_its_parts(run):
    records = [r for r in Workdir(run[0]).records.read_metrics() if "validation/nelbo" in r]
    values = [r["validation/nelbo"] for r in records]
    assert values[-1] < values[0]
    for r in records:
        parts = r["validation/reconstruction"] + r["validation/kl"]
        np.testing.assert_allclose(r["validation/nelbo"], parts, rtol=1e-6)
        groups = r["validation/group_kl/0"] + r["validation/group_kl/1"]
        np.testing.assert_allclose(r["validation/kl"], groups, rtol=1e-6)


def test_finished_run_started_again_changes_nothing(run):
    path, last = run
    before = (path / "metrics.jsonl").read_text()
    assert train(RUN, str(path)) == last
    assert (path / "metrics.jsonl").read_text() == before


def test_divided_parameters_are_saved_whole(run):
    path, _ = run
    restored = []
    for devices, shards in [(8, 2), (8, 4), (1, 1)]:
        mesh = make_mesh(jax.devices()[:devices], shards)
        program = run_program(RUN, mesh)
        state, _ = Workdir(path).checkpoints.restore(program.state)
        leaves = jax.tree.leaves(state.params)
        divided = [x for x in leaves if not x.is_fully_replicated]
        assert (len(divided) >= 5) == (shards > 1)
        restored.append(jax.tree.map(np.asarray, state))
    chex.assert_trees_all_equal(*restored)


def test_other_config_in_the_same_folder_is_refused(run):
    with pytest.raises(ValueError, match=r"training\.seed is 1, saved: 0.*--accept_changes"):
        train(tiny_run(**SHARDED, **{"training.seed": 1}), str(run[0]))


def test_loss_that_is_not_finite_stops_the_run_and_keeps_checkpoints(tmp_path):
    changes = {"training.learning_rate": 1e30, "training.warmup_epochs": 0}
    with pytest.raises(FloatingPointError, match=r"gradient_clip=200.*--accept_changes"):
        train(tiny_run(**changes), str(tmp_path))
    assert Workdir(tmp_path).checkpoints.latest_step() is None


def test_a_checkpoint_from_before_states_had_names_is_restored(tmp_path):
    program = run_program(RUN, make_mesh(parameter_shards=2))
    rng = np.random.default_rng(0)
    state = jax.tree.map(
        lambda x: jax.device_put(rng.integers(0, 99, x.shape).astype(x.dtype), x.sharding),
        program.state,
    )
    state = dataclasses.replace(state, step=jax.device_put(np.int32(3), state.step.sharding))
    links = list(make_links(RUN.training, 1))
    assert list(state.opt_state) == links
    numbered = dataclasses.replace(state, opt_state=tuple(state.opt_state[link] for link in links))
    for name, saved in (("before", numbered), ("now", state)):
        workdir = Workdir(tmp_path / name)
        workdir.checkpoints.save(3, saved, {"step": 3})
        restored = restore(workdir.checkpoints, 3, program.state)
        chex.assert_trees_all_equal(restored, state)
        assert jax.tree.structure(restored) == jax.tree.structure(program.state)
