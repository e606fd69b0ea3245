"""Whether an update fits the memory, and what is advised where it does not."""

import os
import re
import types

import jax
import jax.numpy as jnp
import pytest
from tiny import ONE_DEVICE, tiny_run

from nvae_jax import memory
from nvae_jax.errors import ConfigError
from nvae_jax.memory import machine_memory, usable_memory
from nvae_jax.parallel import replicated
from nvae_jax.training import fitting
from nvae_jax.training.fitting import (
    GIB,
    advice,
    check_memory,
    check_state,
    program_memory,
    refusing_an_exhausted_update,
    required_memory,
)
from nvae_jax.training.state import TrainState


def test_a_programs_memory_is_that_of_its_arrays():
    x = jax.ShapeDtypeStruct((256, 1024), jnp.float32)
    compiled = jax.jit(lambda x, y: (x @ y.T) @ y).lower(x, x).compile()
    arrays = 3 * 256 * 1024 * 4 + 256 * 256 * 4  # two arguments, a result and a temporary
    assert arrays <= program_memory(compiled) < 1.5 * arrays


def needing(arguments, temporaries):
    memory = types.SimpleNamespace(
        argument_size_in_bytes=arguments,
        temp_size_in_bytes=temporaries,
        output_size_in_bytes=arguments,
        alias_size_in_bytes=arguments,
        generated_code_size_in_bytes=0,
    )
    return types.SimpleNamespace(memory_analysis=lambda: memory)


def run_of(**changes):
    """A run with 32 digits per update."""
    return tiny_run(**{"training.batch_size": 32, "model.remat": "none"} | changes)


def test_what_does_not_fit_is_refused_with_flags_that_do(monkeypatch):
    monkeypatch.setattr(fitting, "usable_memory", lambda: 22.5 * GIB)
    run = run_of()
    check_memory(needing(0.2 * GIB, 12 * GIB), ONE_DEVICE, run, False)
    with pytest.raises(ConfigError) as caught:
        check_memory(needing(0.2 * GIB, 16.5 * GIB), ONE_DEVICE, run, False)
    message = str(caught.value)
    assert "training.batch_size 32 needs 23.4 GiB of memory, of which cpu has 22.5" in message
    assert "accumulation_steps" not in message  # on CPU, parts save no memory
    size = int(re.search(r"batch_size=(\d+)", message)[1])
    # The advice works: temporaries are those of the images that are computed at once.
    check_memory(needing(0.2 * GIB, 16.5 * GIB * size / 32), ONE_DEVICE, run, False)
    with pytest.raises(ConfigError):
        check_memory(needing(0.2 * GIB, 16.5 * GIB * (size + 3) / 32), ONE_DEVICE, run, False)


def test_a_state_that_no_machine_holds_is_refused_by_its_shapes(monkeypatch):
    kernel = jax.ShapeDtypeStruct((2**20, 2**10), jnp.float32, sharding=replicated(ONE_DEVICE))
    state = TrainState(None, None, {"kernel": kernel}, {}, {"mu": kernel}, None, {})
    monkeypatch.setattr(fitting, "usable_memory", lambda: 8 * GIB)
    with pytest.raises(ConfigError, match=r"1,073,741,824 parameters .* 12\.0 GiB .* has 8\.0"):
        check_state(state, ONE_DEVICE)
    monkeypatch.setattr(fitting, "usable_memory", lambda: 12 * GIB)
    check_state(state, ONE_DEVICE)


def test_batches_that_are_advised_have_whole_parts():
    compiled = needing(0, 16 * GIB)
    run = run_of(**{"training.accumulation_steps": 4})
    _, more, smaller = advice(compiled, 14 * GIB, "gpu", 1, run, False)
    assert more == "--config.training.accumulation_steps=8"
    assert smaller == "--config.training.batch_size=24"
    for flag in advice(compiled, 20 * GIB, "cpu", 1, run, True):
        assert flag.startswith("--accept_changes --config.training.")


def test_what_nothing_can_mend_needs_more_memory(monkeypatch):
    compiled = needing(100 * GIB, GIB)
    assert advice(compiled, 22 * GIB, "cpu", 1, run_of(), False) == []
    monkeypatch.setattr(fitting, "usable_memory", lambda: 22.5 * GIB)
    with pytest.raises(ConfigError, match="allowed: a device with more memory"):
        check_memory(compiled, ONE_DEVICE, run_of(), False)


@pytest.mark.parametrize(
    ("remat", "further"),
    [("none", ["group"]), ("cell", ["group"]), ("group", ["offload"]), ("offload", [])],
)
def test_recomputation_is_advised_where_there_is_more_of_it(remat, further):
    run = run_of(**{"model.remat": remat})
    flags = advice(needing(100 * GIB, GIB), 22 * GIB, "gpu", 1, run, True)
    assert [re.fullmatch(r"--config.model.remat=(\w+) .*", flag)[1] for flag in flags] == further


def test_a_device_of_unknown_memory_takes_anything(monkeypatch):
    monkeypatch.setattr(fitting, "device_memory", lambda devices: None)
    check_memory(needing(1e15, 1e15), ONE_DEVICE, run_of(), False)


def test_a_container_may_use_less_than_the_machine(monkeypatch):
    whole = machine_memory()
    monkeypatch.setattr(memory.Path, "read_text", lambda path: "1234567")
    assert machine_memory() == 1234567
    monkeypatch.setattr(memory.Path, "read_text", lambda path: "max")
    assert machine_memory() >= whole


def test_memory_that_others_use_is_not_counted(monkeypatch):
    files = {
        "/proc/meminfo": "MemTotal: 24684096 kB\nMemAvailable: 1000 kB\nSwapFree: 7 kB\n",
        "/proc/self/statm": "900 50 40 1 0 30 0",
    }
    monkeypatch.setattr(memory.Path, "read_text", lambda path: files.get(str(path), "max"))
    assert usable_memory() == 1000 * 1024 + 50 * os.sysconf("SC_PAGE_SIZE")
    files["/proc/meminfo"] = "MemAvailable: 999999999999 kB"
    assert usable_memory() == machine_memory()
    files["/proc/meminfo"] = "what another system says"
    assert usable_memory() == machine_memory()


def test_more_is_required_than_the_program():
    for platform in ("cpu", "gpu", "tpu"):
        assert required_memory(GIB, platform, 1) > 1.05 * GIB
    # Eight devices of a CPU are one process.
    assert 8 * required_memory(GIB, "cpu", 8) - 8 * 1.25 * GIB == 2.5 * GIB


def test_exhausted_memory_is_refused_and_other_errors_are_bugs():
    with (
        pytest.raises(
            ConfigError, match=r"Out of memory.*batch_size with --accept_changes, .*--fit"
        ),
        refusing_an_exhausted_update(True),
    ):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes")
    with pytest.raises(jax.errors.JaxRuntimeError), refusing_an_exhausted_update(False):
        raise jax.errors.JaxRuntimeError("INTERNAL: else")
