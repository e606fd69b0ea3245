"""The rooms of the package: what each may import. Arrows only point down, and there are no circles.

A room is a file or a folder of `nvae_jax`; the arrows are checked file by file.
"""

import ast
import graphlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the ground up. Each room lists every room of the package that it may import.
ROOMS: dict[str, set[str]] = {}
ROOMS |= {room: set() for room in ("memory", "errors", "user_cache", "configs")}
GROUND_FLOOR = ("fields", "image_spec", "packaged", "parallel", "processes")
ROOMS |= {room: {"errors"} for room in GROUND_FLOOR}
ROOMS["workdir"] = {"errors", "processes"}
ROOMS["command_line"] = {"errors", "fields"}
ROOMS["model"] = {"errors", "fields", "image_spec"}
ROOMS["objectives"] = ROOMS["model"] | {"model"}
ROOMS["compilation"] = {"model", "user_cache", "memory"}  # which platform it is traced for
ROOMS["data"] = {"errors", "fields", "image_spec", "user_cache", "memory"}
ROOMS["config"] = ROOMS["data"] | {"data", "model", "objectives", "packaged"}
DEVICES = {"parallel", "compilation", "processes"}
ROOMS["evaluation"] = ROOMS["config"] | DEVICES | {"config", "workdir"}
ROOMS["training"] = ROOMS["evaluation"] | {"evaluation"}
ROOMS["interop"] = ROOMS["config"] | {"config"}
ROOMS["compression"] = ROOMS["evaluation"] | {"evaluation"}
ROOMS["api"] = ROOMS["training"] | {"training", "packaged"}
ROOMS["viewer"] = ROOMS["api"] | {"api"}
ROOMS["modes"] = ROOMS["viewer"] | {"viewer", "command_line", "compression"}
ROOMS["measuring"] = ROOMS["modes"] | {"modes"}
ROOMS["tools"] = ROOMS["measuring"] | {"measuring", "interop"}
ROOMS["main"] = ROOMS["modes"] | {"modes"}
ROOMS["__main__"] = set()  # it runs main
ROOMS["__init__"] = {"api"}

# Modules that are pure functions of arrays, and all that they import beside the standard library.
ARRAYS = {"jax", "flax", "numpy"}
GROUND = {f"nvae_jax.{name}" for name in ("errors", "fields", "image_spec")}
PURE_TRAINING = ARRAYS | {
    "optax",
    "chex",
    "nvae_jax.config.training",
    "nvae_jax.model",
    "nvae_jax.objectives",
    "nvae_jax.parallel",
    "nvae_jax.training",
}
PURE = {
    "nvae_jax/image_spec.py": {"jax", "numpy", "nvae_jax.errors"},
    "nvae_jax/model": ARRAYS | GROUND | {"nvae_jax.model"},
    "nvae_jax/objectives": ARRAYS | GROUND | {"nvae_jax.model", "nvae_jax.objectives"},
    **{
        f"nvae_jax/training/{name}.py": PURE_TRAINING
        for name in ("guard", "regularizers", "optimizer", "schedules", "state", "step", "metrics")
    },
}

# Slow to import and not needed to run a model, so only functions that need them import them. The
# builders, which are TFDS's classes, are among them as a whole.
BUILDERS = "nvae_jax.data.builders"
LAZY = {"clu", "gradio", "tensorflow", "tensorflow_datasets", "torch", BUILDERS}


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


def arrows(root: Path) -> dict[str, set[str]]:
    """The modules under ``root/nvae_jax``, and the modules that each of them imports anywhere."""
    files = {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (root / "nvae_jax").rglob("*.py")
    }

    def imported(name: str) -> str:
        """The module that a name is, or is in."""
        while name not in files and "." in name:
            name = name.rpartition(".")[0]
        return name

    return {
        module: {
            imported(name)
            for name, _, _ in imports(path, root)
            if name.partition(".")[0] == "nvae_jax"
        }
        - {"nvae_jax"}
        for module, path in files.items()
    }


def circle(root: Path) -> list[str]:
    """Modules that import each other in a circle; none where there is no circle."""
    try:
        graphlib.TopologicalSorter(arrows(root)).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_the_package_keeps_to_its_rooms():
    assert (ROOT / "nvae_jax" / "errors.py").exists()
    assert violations(ROOT) == []


def test_no_files_import_each_other_in_a_circle():
    graph = arrows(ROOT)
    assert "nvae_jax.data.builders" in graph["nvae_jax.data.sources.tfds"]  # inside a function, too
    assert circle(ROOT) == []


def test_a_circle_is_found(tmp_path):
    package = tmp_path / "nvae_jax" / "data"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("from nvae_jax.data import b")
    (package / "b.py").write_text("def f():\n    from nvae_jax.data.c import x")
    (package / "c.py").write_text("x = 1")
    assert circle(tmp_path) == []
    (package / "c.py").write_text("class C:\n    def f(self):\n        from .a import y")
    assert set(circle(tmp_path)) == {f"nvae_jax.data.{name}" for name in "abc"}


def test_arrows_only_point_down():
    below = set()
    for room, allowed in ROOMS.items():
        assert allowed <= below, room
        below.add(room)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("errors.py", "import dataclasses, ml_collections"),
        ("model/cells.py", "import math\nimport numpy as np\nfrom flax import linen as nn"),
        ("model/cells.py", "from nvae_jax.model.convolution import conv"),
        ("model/cells.py", "from . import convolution\nfrom .convolution import conv"),
        ("model/cells.py", "from nvae_jax.image_spec import ImageSpec"),
        ("workdir/rows.py", "from nvae_jax import errors"),
        ("training/loop.py", "from nvae_jax.evaluation import sampling\nimport grain"),
        ("training/step.py", "import optax\nfrom nvae_jax.config import training"),
        ("training/step.py", "from nvae_jax.config.training import T\nimport jax.numpy as jnp"),
        ("data/tfds.py", "def prepare():\n    import tensorflow_datasets as tfds"),
        ("data/builders/faces.py", "import tensorflow_datasets as tfds"),
        ("data/builders/__init__.py", "from nvae_jax.data.builders.faces import Faces"),
        ("modes/sample.py", "from nvae_jax.training import state"),
    ],
)
def test_allowed(tmp_path, file, source):
    assert check(tmp_path, file, source) == []


@pytest.mark.parametrize(
    ("file", "source", "message"),
    [
        ("__init__.py", "from nvae_jax.model import nvae", "__init__ may import: api"),
        ("errors.py", "import nvae_jax.workdir", "errors may import: "),
        ("workdir/rows.py", "from nvae_jax.model import nvae", "workdir may import: errors, proc"),
        ("parallel.py", "def f():\n    from nvae_jax import data", ":2 imports nvae_jax.data"),
        ("model/cells.py", "from nvae_jax import workdir", "model may import: "),
        ("model/cells.py", "from ..parallel import mesh", "imports nvae_jax.parallel.mesh"),
        ("model/cells.py", "from .. import parallel", "imports nvae_jax.parallel;"),
        ("model/cells.py", "import optax", "it may import: flax, jax, numpy, nvae_jax.errors"),
        ("model/deep/cells.py", "def f():\n    import grain", "imports grain;"),
        ("model/cells.py", "class A:\n    def f(self):\n        import clu.x", ":3 imports clu.x;"),
        ("image_spec.py", "import flax", "it may import: jax, numpy, nvae_jax.errors"),
        ("data/loader.py", "from nvae_jax.model import nvae", "data may import: "),
        ("data/loader.py", "import nvae_jax.training.step as s", "data may import: "),
        ("data/tfds.py", "if True:\n    import tensorflow as tf", "outside a function"),
        ("data/builders/faces.py", "import tensorflow as tf", "outside a function"),
        ("data/prepare.py", "import nvae_jax.data.builders", "outside a function"),
        ("data/prepare.py", "from nvae_jax.data import builders", "outside a function"),
        ("data/tfds.py", "from clu.metric_writers import x", "outside a function"),
        ("config/run.py", "from nvae_jax.training import loop", "config may import: "),
        ("evaluation/fid.py", "from nvae_jax.training import state", "evaluation may import: "),
        ("training/loop.py", "async def f():\n    import nvae_jax.modes.fid", "training may"),
        ("training/step.py", "import ml_collections", "it may import: "),
        ("training/step.py", "import jaxopt", "imports jaxopt;"),
        ("training/step.py", "from nvae_jax.data import loader", "imports nvae_jax.data.loader;"),
        ("training/step.py", "from nvae_jax.config import run", "imports nvae_jax.config.run;"),
        ("training/step.py", "from nvae_jax.evaluation import fid", "it may import: "),
        ("interop/official.py", "from nvae_jax.training import state", "interop may import: "),
        ("compression/coder.py", "from nvae_jax.training import state", "compression may import: "),
        ("modes/fid.py", "from nvae_jax.measuring import hlo", "modes may import: "),
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
