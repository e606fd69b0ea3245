"""The rooms of the package: what each may import. Arrows only point down."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

GROUND = {"config", "memory", "model", "options", "parallel", "processes", "workdir"}

# From the ground up; each room lists every room of the package that it may import.
ROOMS: dict[str, set[str]] = {
    "__init__": set(),
    "config": set(),
    "model": set(),
    "options": {"config"},
    "memory": set(),
    "parallel": set(),
    "processes": {"config"},
    "workdir": {"config"},
    "data": GROUND - {"model"},
    "evaluation": GROUND | {"data"},
    "training": GROUND | {"data", "evaluation"},
    "interop": GROUND | {"data", "evaluation"},
    "tools": GROUND | {"data", "evaluation", "training", "interop"},
    "main": GROUND | {"data", "evaluation", "training", "interop", "tools"},
}

# Modules that are pure functions of arrays, and all that they import beside the standard library.
ARRAYS = {"jax", "flax", "numpy"}
PURE_TRAINING = ARRAYS | {
    "optax",
    "chex",
    "nvae_jax.model",
    "nvae_jax.parallel",
    "nvae_jax.training",
    "nvae_jax.data.transforms",
}
PURE = {
    "nvae_jax/model": ARRAYS | {"nvae_jax.model"},
    **{
        f"nvae_jax/training/{name}.py": PURE_TRAINING
        for name in ("objective", "spectral", "optimizer", "state", "step", "metrics")
    },
}

# Slow to import and not needed to run a model, so only functions that need them import them. The
# builders, which are TFDS's classes, are among them as a whole.
BUILDERS = "nvae_jax.data.builders"
LAZY = {"clu", "tensorflow", "tensorflow_datasets", "torch", BUILDERS}


def imports(path: Path, root: Path) -> Iterator[tuple[str, int, bool]]:
    """Yields (dotted name, line, whether inside a function) for every import in a file."""
    package = path.relative_to(root).with_suffix("").parts[:-1]

    def visit(node: ast.AST, inside: bool) -> Iterator[tuple[str, int, bool]]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, inside
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            for alias in node.names:
                names = (*above, node.module, alias.name) if node.module else (*above, alias.name)
                yield ".".join(names), node.lineno, inside
        inside |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), False)


def is_within(name: str, modules: set[str]) -> bool:
    return any(f"{name}.".startswith(f"{module}.") for module in modules)


def violations(root: Path) -> list[str]:
    """Lists every import under ``root/nvae_jax`` that the rules above forbid."""
    found = []
    for path in sorted((root / "nvae_jax").rglob("*.py")):
        file = path.relative_to(root)
        room = file.parts[1].removesuffix(".py")
        if room not in ROOMS:
            found.append(f"{file} is in no room")
            continue
        is_builder = is_within(".".join(file.with_suffix("").parts), {BUILDERS})
        lazy = LAZY - {BUILDERS, "tensorflow_datasets"} if is_builder else LAZY
        pure = PURE.get(str(file)) or PURE.get("/".join(file.parts[:2]))
        for name, line, inside in imports(path, root):
            top, *rest = name.split(".")
            where = f"{file}:{line} imports {name}"
            if top == "nvae_jax" and rest and rest[0] not in ROOMS[room] | {room}:
                found.append(f"{where}; {room} may import: {', '.join(sorted(ROOMS[room]))}")
            elif pure and top not in sys.stdlib_module_names and not is_within(name, pure):
                found.append(f"{where}; it may import: {', '.join(sorted(pure))}")
            elif is_within(name, lazy) and not inside:
                found.append(f"{where} outside a function")
    return found


def test_the_package_keeps_to_its_rooms():
    assert (ROOT / "nvae_jax" / "config.py").exists()
    assert violations(ROOT) == []


def test_arrows_only_point_down():
    below = set()
    for room, allowed in ROOMS.items():
        assert allowed <= below, room
        below.add(room)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("config.py", "import dataclasses, ml_collections"),
        ("model/cells.py", "import math\nimport numpy as np\nfrom flax import linen as nn"),
        ("model/cells.py", "from nvae_jax.model.convolution import conv"),
        ("model/cells.py", "from . import convolution\nfrom .convolution import conv"),
        ("workdir.py", "from nvae_jax import config"),
        ("training/loop.py", "from nvae_jax.evaluation import sampling\nimport grain"),
        ("training/step.py", "import optax\nfrom nvae_jax.data import transforms"),
        ("training/step.py", "from nvae_jax.data.transforms import unit\nimport jax.numpy as jnp"),
        ("data/tfds.py", "def prepare():\n    import tensorflow_datasets as tfds"),
        ("data/builders/faces.py", "import tensorflow_datasets as tfds"),
        ("data/builders/__init__.py", "from nvae_jax.data.builders.faces import Faces"),
        ("main.py", "from nvae_jax.tools import benchmark"),
    ],
)
def test_allowed(tmp_path, file, source):
    assert check(tmp_path, file, source) == []


@pytest.mark.parametrize(
    ("file", "source", "message"),
    [
        ("__init__.py", "from nvae_jax.model import nvae", "__init__ may import: "),
        ("config.py", "import nvae_jax.workdir", "config may import: "),
        ("workdir.py", "from nvae_jax.model import nvae", "workdir may import: config"),
        ("parallel.py", "def f():\n    from nvae_jax import config", ":2 imports nvae_jax.config"),
        ("model/cells.py", "from nvae_jax import workdir", "model may import: "),
        ("model/cells.py", "from ..parallel import mesh", "imports nvae_jax.parallel.mesh"),
        ("model/cells.py", "from .. import parallel", "imports nvae_jax.parallel;"),
        ("model/cells.py", "import optax", "it may import: flax, jax, numpy, nvae_jax.model"),
        ("model/deep/cells.py", "def f():\n    import grain", "imports grain;"),
        ("model/cells.py", "class A:\n    def f(self):\n        import clu.x", ":3 imports clu.x;"),
        ("data/loader.py", "from nvae_jax.model import nvae", "data may import: "),
        ("data/loader.py", "import nvae_jax.training.step as s", "data may import: "),
        ("data/tfds.py", "if True:\n    import tensorflow as tf", "outside a function"),
        ("data/builders/faces.py", "import tensorflow as tf", "outside a function"),
        ("data/prepare.py", "import nvae_jax.data.builders", "outside a function"),
        ("data/prepare.py", "from nvae_jax.data import builders", "outside a function"),
        ("data/tfds.py", "from clu.metric_writers import x", "outside a function"),
        ("evaluation/fid.py", "from nvae_jax.training import state", "evaluation may import: "),
        ("training/loop.py", "async def f():\n    import nvae_jax.tools.aot", "training may"),
        ("training/step.py", "import ml_collections", "it may import: "),
        ("training/step.py", "import jaxopt", "imports jaxopt;"),
        ("training/step.py", "from nvae_jax.data import loader", "imports nvae_jax.data.loader;"),
        ("training/step.py", "from nvae_jax.evaluation import fid", "it may import: "),
        ("interop/official.py", "from nvae_jax.training import state", "interop may import: "),
        ("tools/aot.py", "from nvae_jax import main", "tools may import: "),
        ("cellar/wine.py", "", "is in no room"),
    ],
)
def test_forbidden(tmp_path, file, source, message):
    (found,) = check(tmp_path, file, source)
    assert message in found


def check(root: Path, file: str, source: str) -> list[str]:
    path = root / "nvae_jax" / file
    path.parent.mkdir(parents=True)
    path.write_text(source)
    return violations(root)
