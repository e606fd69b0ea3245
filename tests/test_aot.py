import dataclasses
import importlib.util
import math
import types

import jax
import numpy as np
import pytest
from tiny import CONFIG

from nvae_jax.config.training import TrainingConfig
from nvae_jax.measuring import aot
from nvae_jax.measuring.aot import Report, candidates, compile_step
from nvae_jax.measuring.hlo import Traffic
from nvae_jax.measuring.topologies import GPUS, make_devices
from nvae_jax.model import variable_shapes
from nvae_jax.parallel import make_mesh
from nvae_jax.training import fitting

TRAINING = TrainingConfig(epochs=10, batch_size=16)


def test_a_report_says_what_a_step_takes_on_each_device():
    config = dataclasses.replace(CONFIG, num_blocks=0, num_groups=1, decoder_channels=4)
    report = compile_step(config, TRAINING, make_mesh())
    numbers = sum(math.prod(x.shape) for x in jax.tree.leaves(variable_shapes(config)["params"]))
    batch = 2 * 32 * 32  # uint8
    # Parameters and two moments, float32, then statistics, singular vectors and the batch.
    assert 3 * 4 * numbers < report.arguments - batch < 6 * 4 * numbers
    assert report.peak >= report.arguments + report.temporaries
    assert (report.devices, report.batch_per_device) == (8, 2)
    assert report.flops > 0
    assert report.traffic.collectives["all-reduce"] > 0
    assert "memory" in str(report)
    assert str(report.traffic.collectives["all-reduce"]) in str(report)


def ways(mesh, batch_size):
    tried = candidates(CONFIG, dataclasses.replace(TRAINING, batch_size=batch_size), mesh)
    return [(c.remat, t.accumulation_steps) for c, t in tried]


def test_what_may_fit_is_tried_from_cheap_to_dear():
    # Parts of the twelve images of a device; recomputation saves nothing on CPU.
    assert ways(make_mesh(), 96) == [("none", parts) for parts in (1, 2, 3, 4, 6, 12)]
    chip = types.SimpleNamespace(platform="tpu")
    mesh = types.SimpleNamespace(size=4, devices=np.array([chip] * 4))
    recomputed = [("none", 1), ("cell", 1), ("group", 1), ("offload", 1)]
    assert ways(mesh, 4) == recomputed
    assert ways(mesh, 12) == [*recomputed, ("group", 3)]


def test_what_a_configuration_does_already_is_not_taken_for_needed():
    config = dataclasses.replace(CONFIG, remat="group")
    training = dataclasses.replace(TRAINING, accumulation_steps=2)
    tried = candidates(config, training, make_mesh(jax.devices()[:8]))
    assert [(c.remat, t.accumulation_steps) for c, t in tried] == [
        ("none", 1),
        ("none", 2),
    ]


def test_devices_of_a_cpu_share_what_it_has_left(monkeypatch):
    monkeypatch.setattr(fitting, "usable_memory", lambda: 16e9)
    devices, limit = make_devices(None)
    assert len(devices) == 8
    assert limit == 2e9


def test_the_search_ends_with_the_first_that_fits(monkeypatch, capsys):
    peaks = iter([30, None, 20, 10, 5])

    def compiled(config, training, mesh, objective):
        peak = next(peaks)
        if peak is None:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 7G over\nand more")
        traffic = Traffic(0.0, {}, {})
        return Report(8, config.remat, training.accumulation_steps, 1, 1, 1, peak, 0.0, traffic, 0)

    monkeypatch.setattr(aot, "compile_step", compiled)
    monkeypatch.setattr(aot, "required_memory", lambda program, *_: program)
    tried = list(candidates(CONFIG, dataclasses.replace(TRAINING, batch_size=96), make_mesh()))
    reports, fits = aot.search(tried, make_mesh(), limit=15)
    assert fits
    assert [report.peak for report in reports] == [30, 20, 10]
    assert (reports[-1].remat, reports[-1].accumulation_steps) == ("none", 4)
    said = capsys.readouterr().out
    assert "remat none, 2 part(s)\n  does not fit: 7G over\n" in said
    assert said.endswith("--config.model.remat=none --config.training.accumulation_steps=4\n")

    peaks = iter([30] * len(tried))
    assert not aot.search(tried, make_mesh(), limit=15)[1]


def test_a_slice_takes_its_compiler(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^--topology is 'v5e:2x4'; .* with libtpu .pip"):
        make_devices("v5e:2x4")


@pytest.mark.parametrize("name", GPUS)
def test_gpus_take_their_compiler(monkeypatch, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=rf"^--topology is '{name}:8'; .*\(pip install jax-cuda12"):
        make_devices(f"{name}:8")


def test_a_slice_that_there_is_not_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "libtpu")
    with pytest.raises(ValueError, match=r"^--topology is 'v9z:1x1'; allowed: a TPU slice such as"):
        make_devices("v9z:1x1")
