"""The notebooks for Colab: valid, without outputs, and they run from top to bottom."""

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import nbformat
import pytest
from absl import flags
from launchers import ROOT
from tiny import ONE_DEVICE, RUN, make_run
from xla import xla_flags

import nvae_jax.main  # noqa: F401 - defines the flags
from nvae_jax.evaluation import trained

NOTEBOOKS = sorted((ROOT / "launch").glob("*.ipynb"))


def load(path):
    return nbformat.read(path, nbformat.current_nbformat)


def split(source):
    """A cell's Python, with `pass` in place of magic lines; and those lines."""
    source = source.replace("\\\n", "")
    magic = re.compile(r"^( *)[!%](.*)$", re.M)
    return magic.sub(r"\1pass", source), [command for _, command in magic.findall(source)]


def code(path):
    return [split(cell.source) for cell in load(path).cells if cell.cell_type == "code"]


def test_there_is_one_to_train_and_one_to_sample():
    assert [path.stem for path in NOTEBOOKS] == ["colab_sample", "colab_train"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_valid_and_holds_no_outputs(path):
    notebook = load(path)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_names_are_bound_before_they_are_used(path):
    known = set(dir(__builtins__)) | set(__builtins__)
    for python, commands in code(path):
        nodes = list(ast.walk(ast.parse(python)))
        for node in nodes:
            if isinstance(node, ast.Import | ast.ImportFrom):
                known |= {alias.asname or alias.name for alias in node.names}
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                known.add(node.id)
            elif isinstance(node, ast.FunctionDef):
                known.add(node.name)
            elif isinstance(node, ast.arg):
                known.add(node.arg)
        used = {node.id for node in nodes if isinstance(node, ast.Name)}
        used |= {name for command in commands for name in re.findall(r"\{(\w+)\}", command)}
        assert used <= known


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_programs_flags_and_configs_exist(path):
    extras = (ROOT / "setup.cfg").read_text()
    for python, commands in code(path):
        assert all(f"\n{extra} =" in extras for extra in re.findall(r'"\[(\w+)\]"', python))
        for words in map(shlex.split, commands):
            if "-m" not in words:
                continue
            module, *options = words[words.index("-m") + 1 :]
            importlib.import_module(module)
            for name, value in (option.removeprefix("--").split("=", 1) for option in options):
                if name == "config":
                    assert (ROOT / value).is_file()
                else:
                    assert name in flags.FLAGS


class Shell:
    """What stands in for Colab: magic lines run as commands, at the size of the smallest model."""

    def __init__(self, folder):
        self.folder, self.shown = folder, []
        fields = RUN | {"training.epochs": 1, "training.warmup_epochs": 0}
        self.fields = [f"--config.{name}={value}" for name, value in fields.items()]
        self.modules = {"IPython": types.ModuleType("IPython")}
        self.modules["IPython.display"] = types.SimpleNamespace(
            display=self.shown.append, Image=lambda filename: Path(filename).read_bytes()
        )

    def __call__(self, command):
        words = shlex.split(command.replace(".venv/bin/python", sys.executable))
        environment = {**os.environ, "XLA_FLAGS": xla_flags(1)}
        done = subprocess.run(
            [*words, *self.fields], cwd=ROOT, env=environment, capture_output=True
        )
        assert done.returncode == 0, done.stderr.decode()[-4000:]

    def execute(self, path, workdir):
        """Runs all cells but the installation, on a run in `workdir`."""
        names = {"shell": self}
        for cell in load(path).cells:
            if cell.cell_type == "code" and cell.id != "install":
                source = re.sub(r"^( *)!(.*)$", r"\1shell(f'''\2''')", cell.source, flags=re.M)
                source = source.replace("/content/runs/digits", str(workdir))
                exec(compile(source, f"{path.name}: {cell.id}", "exec"), names)


@pytest.fixture
def shell(tmp_path, monkeypatch):
    shell = Shell(tmp_path)
    for name, module in shell.modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return shell


def test_the_notebook_that_trains_runs_from_top_to_bottom(shell, tmp_path):
    shell.execute(NOTEBOOKS[1], tmp_path / "run")
    assert [content[:4] for content in shell.shown] == [b"\x89PNG"] * 3  # one of each kind
    assert (tmp_path / "run" / "done.json").is_file()


def test_the_notebook_that_samples_runs_from_top_to_bottom(shell, tmp_path, monkeypatch):
    monkeypatch.setattr(trained, "make_mesh", lambda: ONE_DEVICE)
    shell.execute(NOTEBOOKS[0], make_run(tmp_path / "run"))
    sizes = [(picture.height, picture.width) for picture in shell.shown]
    assert sizes == [(56 * 4, 56 * 8), (56 * 3, 56 * 4), (56 * 3, 56 * 9)]
