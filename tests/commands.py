"""Commands run one after the other, each in a process of its own, without importing JAX anew.

A server imports what the commands need and forks for each of them. It starts no JAX backend, so a
child is what a fresh process would be.
"""

import dataclasses
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


class Commands:
    """The server.

    Args:
      folder: the working directory of the commands.
      **environment: variables that differ from those of this process.
    """

    def __init__(self, folder: Path, **environment: str):
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": paths, **environment},
            text=True,
        )

    def run(self, module: str, *arguments: str, before: str = "") -> Outcome:
        """Runs `python -m module arguments`, after the statements `before`."""
        request = {"module": module, "arguments": arguments, "before": before}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Outcome(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def _serve() -> None:
    # As at a terminal, also where a shell that waits for nothing has had them ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # What the commands import, but the commands themselves, which define their flags once.
    import nvae_jax.config.template
    import nvae_jax.data.prepare
    import nvae_jax.modes.table
    import nvae_jax.processes
    import nvae_jax.training.loop  # noqa: F401

    for line in sys.stdin:
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            child = os.fork()
            if child == 0:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                _run(**json.loads(line))
            _, status = os.waitpid(child, 0)
            out.seek(0)
            err.seek(0)
            code = os.waitstatus_to_exitcode(status)
            print(json.dumps(dataclasses.asdict(Outcome(code, out.read(), err.read()))), flush=True)


def _run(module: str, arguments: list[str], before: str) -> None:
    code = 1
    sys.argv = [module, *arguments]
    try:
        exec(before, {})
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
