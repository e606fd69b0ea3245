"""The processes of a run: how they find each other, and how they are asked to stop.

A multi-host run is one process a host, all started with the same command. JAX's coordination
service, in process 0, watches them: when one dies, it ends the others with a message that names the
dead one's task number.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from nvae_jax.errors import ConfigError, require

T = TypeVar("T")

PATIENCE = 7200  # seconds that processes wait for the slowest to come to a decision
VERDICT_TIMEOUT = 120  # seconds that a process with a failed step waits to be ended by the service


def connect(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    heartbeat_timeout: int = 60,
) -> None:
    """Makes this process one of a multi-host run; to be called before any other use of JAX.

    Args:
      coordinator: `host:port` of process 0; None: as the environment has it (TPU VM, SLURM, Open
        MPI, Kubernetes, or `JAX_COORDINATOR_ADDRESS`).
      num_processes: how many there are, else as the environment has it.
      process_id: which one this is, from 0, else as the environment has it.
      heartbeat_timeout: seconds of silence after which a process counts as dead.

    Raises: ConfigError if something is impossible, or neither given nor found.
    """
    known = process_id is None or bool(num_processes and 0 <= process_id < num_processes)
    require("--process_id", process_id, known, f"0 to --num_processes - 1 ({num_processes})")
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, heartbeat_timeout_seconds=heartbeat_timeout
        )
    except ValueError as error:
        raise ConfigError(
            "no multi-host environment found; give coordinator (host:port of process 0), "
            f"num_processes and process_id ({error})"
        ) from error


def gathered(value: T) -> list[T]:
    """The values of all processes, in their order. They all have to call it, and can be pickled."""
    if jax.process_count() == 1:
        return [value]
    import orbax.checkpoint as ocp

    # A collective operation gives up on a process that comes too late.
    ocp.multihost.get_barrier_sync_fn()(key="gathered", timeout_ms=PATIENCE * 1000)
    content = pickle.dumps(value)
    lengths = multihost_utils.process_allgather(np.int32(len(content)))
    padded = np.frombuffer(content.ljust(max(lengths), b"\0"), np.uint8)
    return [pickle.loads(row.tobytes()) for row in multihost_utils.process_allgather(padded)]


def decided(decide: Callable[[], T]) -> T:
    """What `decide` returns, or refuses, on the first process: every process goes by that.

    What is read from disk may look different to every process, and what one process alone decides
    leaves the others waiting for ever.
    """
    if jax.process_count() == 1:
        return decide()
    outcome: tuple[T | None, ConfigError | None] = None, None
    if jax.process_index() == 0:
        try:
            outcome = decide(), None
        except ConfigError as refusal:
            outcome = None, refusal
    value, error = gathered(outcome)[0]
    if error is not None:
        raise error
    return value  # type: ignore[return-value]


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """Around work of all processes: a ConfigError of one of them is raised by all."""
    error = None
    try:
        yield
    except ConfigError as own:
        error = own
    errors = [e for e in gathered(error) if e is not None]
    if errors:
        raise errors[0]


@contextlib.contextmanager
def naming_the_dead() -> Iterator[None]:
    """Around collective work: if it fails because a process died, the message says which one.

    A collective operation fails without that knowledge, and before the coordination service has it.
    The service then ends this process; the error goes on only if it does not.
    """
    try:
        yield
    except (RuntimeError, ValueError):
        if jax.process_count() > 1:
            traceback.print_exc()
            print(
                f"process {jax.process_index()} of {jax.process_count()}: a step failed, probably "
                "because another process died or lost its network. The coordination service names "
                "it below, by its number (the leader is task 0), as soon as its silence is long "
                "enough",
                file=sys.stderr,
                flush=True,
            )
            time.sleep(VERDICT_TIMEOUT)
        raise


class Preemption:
    """SIGTERM, SIGINT (Ctrl-C) and SIGHUP as requests that a run answers between two steps.

    From its creation on, the signals no longer kill the process, which says when it has done an
    update, and asks `requested` after every one. Before the first there is nothing new to save:
    then the process ends at once, with success, also while the main thread is busy in a compiler.
    (Of several processes, each goes on to its first step; JAX then spreads the request to all.) A
    second signal, unless it follows the first within SAME_REQUEST seconds, ends the process at
    once. Signals that the process was started to ignore, as by nohup, are still ignored.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    SAME_REQUEST = 2.0  # seconds in which a launcher and a terminal may both pass a signal on

    def __init__(self) -> None:
        self._asked = False
        self._stepping = False
        read, write = os.pipe()
        os.set_blocking(write, False)
        # The interpreter writes the signal's number at once, whatever the main thread is doing.
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in self.SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._ask)
        threading.Thread(target=self._watch, args=(read,), daemon=True).start()

    def updated(self) -> None:
        """Says that from now on there is something to save."""
        self._stepping = True

    def requested(self, step: int) -> bool:
        """Whether to save and leave after `step`; the same answer on every process."""
        self.updated()
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    def _ask(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        if number != signal.SIGTERM and not self._asked and jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # the one that JAX spreads
        self._asked = True

    def _watch(self, pipe: int) -> None:
        first = None
        while True:
            number = os.read(pipe, 1)[0]
            if number not in self.SIGNALS:
                continue
            name = signal.Signals(number).name
            now = time.monotonic()
            if not self._stepping:
                print(f"{name} before the first update: nothing new to save", flush=True)
                os._exit(0)
            if first is None:
                first = now
                print(f"{name}: the run is saved after this step; again: it ends now", flush=True)
            elif now - first > self.SAME_REQUEST:
                print(f"{name} again: the run ends without being saved", flush=True)
                os._exit(128 + number)
