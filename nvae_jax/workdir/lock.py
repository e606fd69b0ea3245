"""One process at a time trains in a work directory: `lock.json` says which."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator

import jax
from etils import epath

from nvae_jax.errors import ConfigError, writing
from nvae_jax.workdir.files import is_remote, write

BEAT = 20.0  # seconds between the signs of life in a lock that no file system holds
PATIENCE = 2.5  # beats without a sign of life after which its owner counts as dead


@dataclasses.dataclass(frozen=True)
class Owner:
    """Who holds a lock.

    Attributes:
      host: its name.
      process: number of the process there.
      since: local time of its start.
      token: unique.
      beats: signs of life so far.
    """

    host: str
    process: int
    since: str
    token: str
    beats: int = 0

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, started {self.since}"


@contextlib.contextmanager
def locked(folder: epath.Path) -> Iterator[str | None]:
    """Holds the lock of a folder.

    Where the file system has locks (local disks, NFS), it releases this one when the process ends,
    however it ends. Elsewhere (buckets) the owner writes signs of life, and one that shows none is
    taken for dead. Of a multi-host run, the first process holds the lock.

    Yields: a message if the lock was left by an owner that ended without releasing it, else None.

    Raises:
      ConfigError: another process holds the lock, or it cannot be written.
    """
    if jax.process_index() != 0:
        yield None
        return
    path = folder / "lock.json"
    owner = Owner(
        socket.gethostname(), os.getpid(), time.strftime("%Y-%m-%d %H:%M:%S"), uuid.uuid4().hex
    )
    with contextlib.ExitStack() as stack:
        before = _hold(path, owner, stack)
        left = f"{folder} was left by {before}, which ended without releasing it"
        yield None if before is None else left


def _hold(path: epath.Path, owner: Owner, stack: contextlib.ExitStack) -> Owner | None:
    """Takes the lock until `stack` ends; returns the owner that left it, if any did."""
    if not is_remote(path):
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        stack.callback(os.close, file)
        try:
            # Not flock, whose lock workers would inherit.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise _taken(path.parent, _parse(path)) from None
        except OSError:  # a file system without locks
            pass
        else:
            before = _parse(file)
            _rewrite(file, owner)
            stack.callback(os.ftruncate, file, 0)
            return before
    before = _parse(path)
    if before is not None and _lives(path, before):
        raise _taken(path.parent, before)
    ended = threading.Event()
    write(path, json.dumps(dataclasses.asdict(owner)).encode())
    thread = threading.Thread(target=_beat, args=(path, owner, ended), daemon=True)
    thread.start()
    stack.callback(write, path, b"")
    stack.callback(thread.join)
    stack.callback(ended.set)
    return before


def _taken(folder: epath.Path, owner: Owner | None) -> ConfigError:
    return ConfigError(
        f"--workdir is {os.fspath(folder)!r}, where {owner or 'another process'} is training; "
        "allowed: another folder, or to stop that process first"
    )


def _lives(path: epath.Path, owner: Owner) -> bool:
    """Whether the owner shows a sign of life; clocks of other hosts are not relied on."""
    print(f"waiting to see whether {owner} is alive", flush=True)
    deadline = time.monotonic() + PATIENCE * BEAT
    while time.monotonic() < deadline:
        time.sleep(BEAT / 4)
        now = _parse(path)
        if now is None:
            return False
        if (now.token, now.beats) != (owner.token, owner.beats):
            return True
    return False


def _beat(path: epath.Path, owner: Owner, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        owner = dataclasses.replace(owner, beats=owner.beats + 1)
        with contextlib.suppress(ConfigError):  # a missed beat; the next one may be written
            write(path, json.dumps(dataclasses.asdict(owner)).encode())


def _parse(file: epath.Path | int) -> Owner | None:
    """The owner in a file; by its descriptor where it is locked, for closing another unlocks it."""
    try:
        text = os.pread(file, 2**16, 0) if isinstance(file, int) else file.read_bytes()
        return Owner(**json.loads(text))
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def _rewrite(file: int, owner: Owner) -> None:
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps(dataclasses.asdict(owner)).encode(), 0)
