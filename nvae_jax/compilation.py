"""Compiling: options, the cache of compiled programs, and compiling together or ahead."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import os
import platform as host
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from nvae_jax.memory import give_back_freed_memory
from nvae_jax.model.kernels.platform import compiling_for
from nvae_jax.user_cache import cache_folder

_COMPILED = "/jax/core/compile/backend_compile_duration"  # an event of JAX, with seconds
_LONG = 1.0  # seconds of compiling that leave much memory behind
COMPILATION_TIMEOUT = 7200  # seconds that processes wait for the slowest compiler


def jit_on(
    mesh: Mesh, function: Callable[..., Any], reproducible: bool = False, **options: Any
) -> Any:
    """`jax.jit` of a function that runs on a mesh, with what is best on its platform.

    Args:
      mesh: the devices.
      function: to compile; all its arguments are positional.
      reproducible: whether equal inputs have to give equal bits wherever there is such a device.
      **options: of `jax.jit`.
    """
    platform = mesh.devices.flat[0].platform
    settings = compiler_options(platform, reproducible)
    return jax.jit(_traced_for(platform, function), compiler_options=settings, **options)


def jit_for(platform: str, function: Callable[..., Any]) -> Any:
    """`jax.jit` of a function that is to be exported for a platform, such as "cuda"."""
    return jax.jit(_traced_for({"cuda": "gpu", "rocm": "gpu"}.get(platform, platform), function))


def compiler_options(platform: str, reproducible: bool = False) -> dict[str, Any]:
    """What the compiler is told for a platform; see `jit_on`."""
    if platform != "cpu":
        return {}
    return _reproducible_cpu_options() if reproducible else _cpu_options()


# JAX knows a function that it has compiled by its identity, so the same one is returned again.
@functools.lru_cache(maxsize=64)
def _traced_for(platform: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which is traced with `platform` as the one that it is compiled for."""

    @functools.wraps(function)
    def traced(*args: Any) -> Any:
        with compiling_for(platform):
            return function(*args)

    return traced


@functools.cache
def _reproducible_cpu_options() -> dict[str, Any]:
    """Compiler options with which a program does not depend on the number of cores or their kind.

    Sums are taken in one order by one thread, and by instructions that all x86 processors of the
    last ten years have. YNNPACK is left out because it looks at the processor to choose.
    """
    options: dict[str, Any] = {
        "xla_cpu_multi_thread_eigen": False,
        "xla_cpu_experimental_ynn_fusion_type": "",
    }
    if host.machine() in ("x86_64", "AMD64"):
        options["xla_cpu_max_isa"] = "AVX2"
    return {name: value for name, value in options.items() if _known({name: value})}


@functools.cache
def _cpu_options() -> dict[str, str]:
    """Compiler options for CPU; none where this version of XLA does not know them."""
    # What XLA leaves to YNNPACK: its own list but for convolutions, which stay on one core there if
    # they have 64 channels or fewer.
    options = {
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,"
        "LIBRARY_FUSION_TYPE_REDUCE"
    }
    return options if _known(options) else {}


def _known(options: dict[str, Any]) -> bool:
    """Whether this version of XLA has such options."""
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def compiled_together(function: Any, name: str) -> Callable[..., Any]:
    """A jitted function whose first call waits until all processes have compiled it.

    A collective operation gives up when a process comes too late for it, on CPU after 30 seconds,
    and compilation can take longer than that on one process and no time on another, which finds the
    program in its cache. All calls must be with the same shapes.

    Args:
      function: of `jax.jit`.
      name: of the function, different for every function of a run.
    """
    if jax.process_count() == 1:
        return function
    compiled: Any = None

    def call(*args: Any) -> Any:
        nonlocal compiled
        if compiled is None:
            compiled = _compile_together(function, name, args)
        return compiled(*args)

    return call


def compiled_ahead(
    function: Any, name: str, *shapes: Any, check: Callable[[Any], object] = lambda compiled: None
) -> Callable[..., Any]:
    """As `compiled_together`, but compilation begins at once, in a thread of its own.

    Its errors are raised by the first call. A program that ends before would wait for the compiler,
    but for `leaving_promptly`.

    Args:
      function: of `jax.jit`.
      name: of the function, different for every function of a run.
      shapes: what it will be called with, as `jax.ShapeDtypeStruct` with shardings.
      check: called with the compiled function; what it raises counts as an error of compilation.
    """

    def compile_() -> Any:
        compiled = _compile_together(function, name, shapes)
        check(compiled)
        return compiled

    thread = concurrent.futures.ThreadPoolExecutor(1, "compile")
    compiled = thread.submit(compile_)
    thread.shutdown(wait=False)
    _ahead[:] = [compiled, *(other for other in _ahead if not other.done())]
    return lambda *args: compiled.result()(*args)


_ahead: list[concurrent.futures.Future[Any]] = []


@contextlib.contextmanager
def leaving_promptly() -> Iterator[None]:
    """Around all that a process does: if it fails, it does not wait for what is compiled ahead."""
    try:
        yield
    except BaseException as error:
        if all(compiled.done() for compiled in _ahead):
            raise
        code = error.code if isinstance(error, SystemExit) else 1
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def _compile_together(function: Any, name: str, args: tuple[Any, ...]) -> Any:
    compiled = function.lower(*args).compile()
    if jax.process_count() > 1:
        import orbax.checkpoint as ocp

        wait_for_all = ocp.multihost.get_barrier_sync_fn()
        wait_for_all(key=f"compiled {name}", timeout_ms=COMPILATION_TIMEOUT * 1000)
    return compiled


def usable_cores() -> int:
    """Cores that this process may use, which may be fewer than there are."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def give_back_after_compiling() -> None:
    """Has this process hand back what the compiler leaves, which on CPU is more than the update's.

    Otherwise a process that keeps what it frees (`nvae_jax.memory`) keeps that for its whole life.
    """

    def give_back(event: str, duration_secs: float, **_: Any) -> None:
        if event == _COMPILED and duration_secs > _LONG:
            give_back_freed_memory()

    jax.monitoring.register_event_duration_secs_listener(give_back)


def keep_compiled_programs() -> None:
    """Has JAX keep what it compiles in the user's cache folder, so that the next start is faster.

    `JAX_COMPILATION_CACHE_DIR` (or `jax.config`) names another folder, and
    `JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS` keeps only programs that took so long.
    """
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # A start compiles dozens of programs of one operation each, which together take seconds.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        # A program for CPU is divided between the cores that compiling it could use, and JAX's key
        # does not tell: one compiled on a single core would stay on a single core everywhere.
        folder = cache_folder(f"xla_{usable_cores()}_cores")
        if folder is not None:
            jax.config.update("jax_compilation_cache_dir", os.fspath(folder))
