import dataclasses
import math

import jax
import pytest
from tiny import CONFIG

from nvae_jax.model import variable_shapes
from nvae_jax.parallel import make_mesh
from nvae_jax.tools.aot import candidates, compile_step, make_devices
from nvae_jax.training.settings import TrainingConfig

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


def test_what_may_fit_is_tried_from_cheap_to_dear():
    tried = candidates(CONFIG, dataclasses.replace(TRAINING, batch_size=96), make_mesh())
    assert [(c.remat, t.accumulation_steps) for c, t in tried] == [
        ("none", 1),
        ("cell", 1),
        ("group", 1),
        ("group", 2),
        ("group", 4),
    ]


def test_a_configuration_that_saves_memory_already_is_where_it_starts():
    config = dataclasses.replace(CONFIG, remat="group")
    training = dataclasses.replace(TRAINING, accumulation_steps=2)
    tried = candidates(config, training, make_mesh(jax.devices()[:4]))
    assert [(c.remat, t.accumulation_steps) for c, t in tried] == [("group", 2), ("group", 4)]


def test_a_slice_that_there_is_not_is_refused_by_name():
    with pytest.raises(ValueError, match=r"^topology is 'v9z:1x1'; allowed: a TPU slice such as"):
        make_devices("v9z:1x1")
