"""The train step compiled for GPUs, which need not be at hand; it requires JAX's compiler for them.

pip install -e '.[gpu_compile]'
"""

import dataclasses
import re

import jax
import pytest
from tiny import CONFIG

from nvae_jax.config.training import TrainingConfig
from nvae_jax.measuring.topologies import has_gpu_compiler, make_devices
from nvae_jax.model import variable_shapes
from nvae_jax.parallel import make_mesh
from nvae_jax.training.program import make_program

pytestmark = pytest.mark.skipif(
    not has_gpu_compiler(), reason="JAX's compiler for GPUs is not installed"
)


MODEL = dataclasses.replace(CONFIG, architecture="res_mbconv", num_flows=1, dtype="bfloat16")


@pytest.fixture(scope="module", params=["h100", "h100:8"])
def compiled(request):
    """The number of GPUs, and the update of the smallest paper-like model for them, as HLO."""
    devices, _ = make_devices(request.param)
    training = TrainingConfig(epochs=10, batch_size=16)
    program = make_program(MODEL, training, 1000, make_mesh(devices), flip=True)
    # The compiler's last stage takes most of the time and changes nothing that is looked at here.
    options = {"xla_backend_optimization_level": 0}
    lowered = program.update.lower(program.state, program.batch)
    return len(devices), lowered.compile(compiler_options=options).as_text()


def test_every_convolution_is_a_call_of_cudnn_or_part_of_a_fusion(compiled):
    _, text = compiled
    assert re.findall(r" = \S+ convolution\(", text) == []
    assert "__cudnn$conv" in text


def test_nothing_calls_the_host(compiled):
    _, text = compiled
    targets = set(re.findall(r'custom_call_target="([^"]*)"', text))
    assert [name for name in targets if "callback" in name] == []
    assert re.findall(r" (?:infeed|outfeed|send|recv)\(", text) == []


def test_the_two_sums_of_a_batch_norm_are_exchanged_together(compiled):
    devices, text = compiled
    reduces = re.findall(r" all-reduce(?:-start)?\(", text)
    if devices == 1:
        assert reduces == []
    else:
        norms = len(jax.tree.leaves(variable_shapes(MODEL)["batch_stats"])) // 2
        # Forward and backward; the rest are gradients and metrics. Apart, they would be 4 · norms.
        assert len(reduces) < 3 * norms
