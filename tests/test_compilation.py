import platform
import threading
import types

import jax
import numpy as np
import pytest
from tiny import ONE_DEVICE, run_program, tiny_run

from nvae_jax.compilation import (
    _reproducible_cpu_options,
    compiled_ahead,
    jit_on,
    keep_compiled_programs,
    leaving_promptly,
)
from nvae_jax.model.kernels.platform import compiled_platform
from nvae_jax.parallel import make_mesh


def test_compiled_programs_are_kept_where_the_user_says(monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    least_before = jax.config.jax_persistent_cache_min_compile_time_secs
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        # Programs for other numbers of cores are others.
        for cores in ({0}, {0, 5, 7}):
            monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: cores, raising=False)
            jax.config.update("jax_compilation_cache_dir", None)
            keep_compiled_programs()
            folder = tmp_path / "nvae_jax" / f"xla_{len(cores)}_cores"
            assert jax.config.jax_compilation_cache_dir == str(folder)
            assert jax.config.jax_persistent_cache_min_compile_time_secs == 0  # small ones too
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
        jax.config.update("jax_compilation_cache_dir", "elsewhere")
        monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "7")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 7.0)
        keep_compiled_programs()
        assert jax.config.jax_compilation_cache_dir == "elsewhere"
        assert jax.config.jax_persistent_cache_min_compile_time_secs == 7
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", least_before)


@pytest.mark.parametrize(("ending", "code"), [(SystemExit(2), 2), (ValueError("a bug"), 1)])
def test_a_process_that_fails_does_not_wait_for_the_compiler(monkeypatch, capsys, ending, code):
    goes_on, left = threading.Event(), []
    monkeypatch.setattr("os._exit", left.append)
    lowered = types.SimpleNamespace(compile=lambda: goes_on.wait(60) and (lambda: 3))
    call = compiled_ahead(types.SimpleNamespace(lower=lambda: lowered), "slow")
    try:
        with leaving_promptly():
            raise ending
    finally:
        goes_on.set()
    assert left == [code]
    assert ("a bug" in capsys.readouterr().err) == (code == 1)
    assert call() == 3
    # Once it is compiled, a process ends as any other.
    with pytest.raises(type(ending)), leaving_promptly():
        raise ending
    assert left == [code]


def test_convolutions_on_cpu_use_all_cores():
    """XLA leaves them to a library that does not divide these, unless told otherwise."""

    def convolve(x, kernel):
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dimensions)

    x, kernel = np.ones((4, 16, 16, 64), np.float32), np.ones((3, 3, 64, 64), np.float32)

    def compiled(jitted):
        return jitted.lower(x, kernel).compile().as_text()

    assert "ynn_fusion" in compiled(jax.jit(convolve))
    assert "ynn_fusion" not in compiled(jit_on(make_mesh(jax.devices()[:1]), convolve))


def test_a_function_is_traced_once_for_each_platform():
    traced = []

    def function(x):
        traced.append(compiled_platform())
        return x + 1

    x = np.ones(3)
    for _ in range(2):
        np.testing.assert_array_equal(jit_on(ONE_DEVICE, function)(x), x + 1)
    assert traced == ["cpu"]


def test_a_function_compiled_ahead_is_the_function():
    x = jax.ShapeDtypeStruct((3,), np.float32)
    double = compiled_ahead(jax.jit(lambda x: 2 * x, donate_argnums=0), "double", x)
    given = jax.numpy.arange(3.0)
    np.testing.assert_array_equal(double(given), [0, 2, 4])
    assert given.is_deleted()
    np.testing.assert_array_equal(double(jax.numpy.ones(3)), [2, 2, 2])


def test_what_fails_ahead_is_raised_by_the_call():
    wrong = compiled_ahead(jax.jit(lambda x: x @ x), "wrong", jax.ShapeDtypeStruct((), np.float32))
    with pytest.raises((TypeError, ValueError), match="matmul"):
        wrong(np.float32(1))


def test_runs_of_all_seeds_are_the_same_programs():
    programs = []
    for seed in (0, 1):
        program = run_program(tiny_run(**{"training.seed": seed}), ONE_DEVICE)
        init = program.init.lower(program.batch, jax.ShapeDtypeStruct((), np.uint32))
        update = program.update.lower(program.state, program.batch)
        programs.append((init.as_text(), update.as_text()))
    assert programs[0] == programs[1]


def test_reproducible_programs_are_compiled_for_one_thread_and_common_instructions():
    options = _reproducible_cpu_options()
    assert options["xla_cpu_multi_thread_eigen"] is False
    assert options.get("xla_cpu_max_isa") == ("AVX2" if platform.machine() == "x86_64" else None)
    x = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    product = jit_on(ONE_DEVICE, lambda a, b: a @ b, reproducible=True)(x, x)
    np.testing.assert_allclose(product, x.astype(np.float64) @ x, rtol=1e-4, atol=1e-4)
