"""The plain VAE and every objective in the same step, loop and modes as NVAE's."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interruptions import last_arrays
from tiny import CLASSES, ONE_DEVICE, PLAIN, make_run, run_program

from configs import default
from nvae_jax.compression.network import check_codable
from nvae_jax.config.changes import check_changes
from nvae_jax.config.run import read_run
from nvae_jax.errors import ConfigError
from nvae_jax.evaluation.latents import encode_images
from nvae_jax.evaluation.trained import open_run
from nvae_jax.modes.decode import DecodeOptions, decode
from nvae_jax.modes.edit import EditOptions, edit
from nvae_jax.modes.encode import EncodeOptions, encode
from nvae_jax.modes.evaluate import EvaluateOptions, evaluate
from nvae_jax.modes.interpolate import InterpolateOptions, interpolate
from nvae_jax.modes.reconstruct import ReconstructOptions, reconstruct
from nvae_jax.modes.sample import SampleOptions, sample
from nvae_jax.parallel import make_mesh, shard_batch
from nvae_jax.training.continuing import restore
from nvae_jax.training.loop import train
from nvae_jax.workdir import Workdir

# Objectives with other fields than their defaults.
CASES = {
    "elbo": {"objective.beta": 2.0, "objective.free_bits": 0.1, "model.num_classes": 4},
    "decomposed": {"objective.between_groups": 3.0, "objective.groups": (1, 2)},
    "mmd": {"objective.encoder": "deterministic", "training.accumulation_steps": 2},
    "wae_gan": {"objective.discriminator_widths": (8, 8), "training.ema_decay": 0.9},
    "intro": {"training.regularization": 1e-2},
}


def conv_run(objective="elbo", dataset="digits", **changes):
    """A small run of a plain VAE."""
    config = default.get_config(dataset, "conv_vae", objective)
    config.model.update(widths=(4, 8), num_latents=3)
    config.training.update(default.plain_training(1e-3), epochs=1, batch_size=256)
    config.training.update(dict.fromkeys(("log_interval", "checkpoint_interval"), 1))
    config.update_from_flattened_dict(changes)
    return read_run(config)


def compiled(program):
    return program.update.lower(program.state, program.batch).compile()


@functools.cache
def program_and_batch(name):
    """The program of a case on one device, its update compiled, a batch and a fresh state."""
    program = run_program(conv_run(name, **CASES[name] | {"training.batch_size": 16}), ONE_DEVICE)
    rng = np.random.default_rng(0)
    index = np.arange(16, dtype=np.int32)
    image = rng.integers(0, 256, (16, 32, 32, 1), np.uint8)
    batch = {"image": image, "index": index, "epoch": np.zeros(16, np.int32)}
    shapes = jax.ShapeDtypeStruct((), np.uint32)
    init = program.init.lower(program.batch, shapes).compile()
    return compiled(program), program, batch, init(batch, jnp.uint32(0))


def host(tree):
    return jax.tree.map(np.array, tree)


@pytest.mark.parametrize("name", CASES)
def test_an_update_moves_everything_on_any_number_of_devices(name, tmp_path):
    update, program, batch, fresh = program_and_batch(name)
    start = host(fresh)
    first, metrics = update(jax.device_put(start), batch)
    first = host(first)
    assert metrics["skipped"] == 0
    chex.assert_tree_all_finite((first, metrics))
    moved = jax.tree.map(lambda a, b: (a != b).any(), start.params, first.params)
    still = [path for path, x in jax.tree_util.tree_leaves_with_path(moved) if not x]
    # A bias before a batch norm has no effect, and deterministic codes have no variance.
    names = {jax.tree_util.keystr(path, simple=True, separator="/") for path in still}
    assert all("/conv_" in n or "log_variance" in n for n in names), names
    stats = jax.tree.map(lambda a, b: (a != b).any(), start.batch_stats, first.batch_stats)
    assert all(jax.tree.leaves(stats))
    if start.ema_params is not None:
        expected = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, start.params, first.params)
        chex.assert_trees_all_close(first.ema_params, expected, rtol=1e-5, atol=1e-6)

    second, _ = update(jax.device_put(first), batch)
    second = host(second)
    workdir = Workdir(tmp_path)
    workdir.checkpoints.save(1, first, {"step": 1})
    again, _ = update(restore(workdir.checkpoints, 1, program.state), batch)
    chex.assert_trees_all_equal(host(again), second)
    assert jax.tree.structure(again) == jax.tree.structure(program.state)

    mesh = make_mesh()
    many = run_program(conv_run(name, **CASES[name] | {"training.batch_size": 16}), mesh)
    on_mesh = jax.device_put(start, jax.tree.map(lambda x: x.sharding, many.state))
    divided, values = compiled(many)(on_mesh, shard_batch(mesh, batch))
    for key, value in values.items():
        np.testing.assert_allclose(value, metrics[key], rtol=1e-4, atol=1e-5, err_msg=key)
    # Adam's first step is the sign of the gradient, which may be rounding alone.
    chex.assert_trees_all_close(host(divided).batch_stats, first.batch_stats, rtol=1e-4, atol=1e-5)
    differences = jax.tree.map(
        lambda a, b: np.abs(a - b) > 1e-5, host(divided).params, first.params
    )
    flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(differences)])
    assert flat.mean() < 0.05


class StopAfter:
    """Asks a run to stop after a step."""

    def __init__(self, step):
        self.step = step

    def requested(self, step):
        return step == self.step

    def updated(self):
        pass


def test_a_run_with_a_discriminator_resumes_bit_for_bit(tmp_path):
    run = conv_run("wae_gan", **CASES["wae_gan"])
    last = train(run, tmp_path / "whole")
    assert train(run, tmp_path / "broken", StopAfter(2)) is None
    assert train(run, tmp_path / "broken") == last
    whole, broken = (last_arrays(tmp_path / name) for name in ("whole", "broken"))
    assert any("discriminator" in name for name in whole)
    assert whole.keys() == broken.keys()
    for name, array in whole.items():
        np.testing.assert_array_equal(array, broken[name], name)
    # Deterministic codes have no density, so there is no bound.
    assert "validation/reconstruction" in last
    assert "validation/nelbo" not in last
    log = (tmp_path / "whole" / "log.txt").read_text()
    assert "validation reconstruction error" in log
    assert "independent pixels" not in log
    model = open_run(tmp_path / "whole")
    with pytest.raises(ConfigError, match=r"objective.name is 'wae_gan'; .* or there is no bound"):
        evaluate(model)
    x = np.zeros((2, 32, 32, 1), np.float32)
    drawn, means = (encode_images(model, x, scale).values[0] for scale in (1.0, 0.0))
    np.testing.assert_array_equal(drawn, means)


def test_a_run_with_squared_error(tmp_path):
    changes = {"model.likelihood": "squared_error", "objective.beta": 1e-3}
    last = train(conv_run(dataset="photos", **changes), tmp_path)
    assert 0 < last["validation/reconstruction"] < 1
    assert {"validation/kl", "validation/group_kl/0"} <= last.keys()
    assert not [name for name in last if "nelbo" in name or "bits" in name]
    assert (tmp_path / "pictures" / "curves.png").exists()
    model = open_run(tmp_path)
    with pytest.raises(ConfigError, match=r"model.likelihood is 'squared_error'"):
        evaluate(model)
    with pytest.raises(ConfigError, match="pixels is 'sample'; allowed: mean"):
        sample(model, SampleOptions(num_images=2, pixels="sample"))
    with pytest.raises(ConfigError, match="operation is 'inpaint'"):
        edit(model, EditOptions("inpaint", ("test:0",), region=(0, 0, 4, 4)))


@pytest.mark.parametrize("config", [PLAIN, CLASSES])
def test_modes(config, tmp_path):
    path = make_run(tmp_path, config)
    one, eight = open_run(path, ONE_DEVICE), open_run(path, make_mesh())
    options = {"num_images": 5, "temperature": (0.7,), "batch_size": 1}
    files = [
        sample(model, SampleOptions(**options, name=name))
        for name, model in (("one", one), ("eight", eight))
    ]
    contents = []
    for file in files:
        with open(file, "rb") as stream:
            contents.append(stream.read())
    assert contents[0] == contents[1]

    images = ("test:0-2",)
    latents = encode(one, EncodeOptions(images))
    decoded = [decode(one, DecodeOptions(latents, space)) for space in ("latents", "noise")]
    np.testing.assert_allclose(*decoded, atol=1e-5)
    rows = reconstruct(one, ReconstructOptions(images))
    assert rows.shape == (3, 3, 28, 28, 1)
    np.testing.assert_allclose(rows[:, 2], decoded[0], atol=1e-5)
    assert interpolate(one, InterpolateOptions(images, steps=3)).shape == (2, 3, 28, 28, 1)
    assert edit(one, EditOptions("vary", images)).shape[:2] == (3, 8)
    if config.num_classes:
        varied = edit(one, EditOptions("vary", images, groups=(1,)))
        assert varied.shape[:2] == (3, 8)
    else:
        with pytest.raises(
            ConfigError, match=r"groups is \(0,\); allowed: none: a conv_vae has no"
        ):
            edit(one, EditOptions("vary", images, groups=(0,)))
    with pytest.raises(ConfigError, match="operation is 'mix'; allowed: vary"):
        edit(one, EditOptions("mix", images))
    report = evaluate(one, EvaluateOptions(images=4, draws=20))
    nelbo = report["reconstruction"]["nats"] + report["kl"]["nats"]
    np.testing.assert_allclose(report["nelbo"]["nats"], nelbo, rtol=1e-6)
    bounds = [bound["nats"] for bound in report["bounds"]]
    assert bounds == sorted(bounds, reverse=True)
    assert len(report["groups"]) == config.total_groups


@pytest.mark.parametrize(
    ("objective", "changes", "message"),
    [
        (
            "decomposed",
            {"objective.groups": (1, 1)},
            r"objective.groups is \(1, 1\).*the 3 latents",
        ),
        ("decomposed", {"training.batch_size": 1}, "objective.name is 'decomposed'.*2 or more"),
        ("mmd", {"training.batch_size": 1}, "objective.name is 'mmd'.*2 or more images"),
        (
            "mmd",
            {"objective.encoder": "deterministic", "objective.information_preference": 0.5},
            "objective.encoder is 'deterministic'; allowed: gaussian",
        ),
        ("mmd", {"objective.scales": (0.0,)}, "objective.scales"),
        ("intro", {"model.num_classes": 4}, "objective.name is 'intro'; allowed: elbo, decomposed"),
        ("elbo", {"objective.beta": -1.0}, "objective.beta is -1.0; allowed: 0 or more"),
        ("elbo", {"model.num_classes": 1}, "model.num_classes is 1; allowed: 0, or 2 to 1024"),
        (
            "elbo",
            {"model.likelihood": "normal"},
            "model.likelihood is 'normal'; allowed: bernoulli",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(objective, changes, message):
    with pytest.raises(ConfigError, match=message):
        conv_run(objective, **changes)


@pytest.mark.parametrize("name", ["decomposed", "mmd", "wae_gan", "intro"])
def test_a_hierarchy_has_the_bound_only(name):
    config = default.get_config("digits", objective=name)
    with pytest.raises(ConfigError, match=f"objective.name is '{name}'; allowed: elbo with"):
        read_run(config)


def test_names_that_there_are_not():
    settings = conv_run().to_dict()
    for section, known in (("model", "nvae, conv_vae"), ("objective", "elbo, decomposed")):
        with pytest.raises(ConfigError, match=rf"{section}.name is 'gan'; allowed: {known}"):
            read_run(settings | {section: {"name": "gan"}})
    del settings["objective"]
    assert read_run(settings).objective.name == "elbo"


def test_another_family_is_another_run():
    other = default.get_config("digits")
    with pytest.raises(ConfigError, match=r"config.model.name is 'nvae', saved: 'conv_vae'") as e:
        check_changes(conv_run(), read_run(other), accept=True)
    assert "widths" not in str(e.value)


@pytest.mark.parametrize(
    ("objective", "changes", "named"),
    [
        ("intro", {}, "objective.name"),
        ("elbo", {"training.optimizer": "adamax"}, "training.optimizer"),
        ("elbo", {"training.regularization": 1e-2}, "training.regularization"),
    ],
)
def test_the_optimisers_state_is_fixed(objective, changes, named):
    given = conv_run(objective, **changes)
    with pytest.raises(ConfigError, match=f"{named} is .*, which gives the optimiser its state"):
        check_changes(conv_run(), given, accept=True)
    saved = conv_run("wae_gan", **{"objective.discriminator_widths": (4,)})
    with pytest.raises(ConfigError, match=r"objective.discriminator_widths is .* its state"):
        check_changes(saved, conv_run("wae_gan"), accept=True)
    # Objectives of one loss may follow each other.
    names = [change.name for change in check_changes(conv_run(), conv_run("mmd"), accept=True)]
    assert "objective.name" in names


def test_only_a_hierarchy_is_compressed():
    with pytest.raises(ConfigError, match=r"model.name is 'conv_vae'; allowed: nvae, to compress"):
        check_codable(PLAIN)
