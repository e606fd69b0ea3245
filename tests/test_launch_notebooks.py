"""The notebooks for Colab: valid, without outputs, and what they name exists."""

import ast
import importlib
import re
import shlex

import nbformat
import pytest
from absl import flags
from launchers import ROOT

import nvae_jax.main  # noqa: F401 - defines the flags

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
            elif isinstance(node, ast.arg):
                known.add(node.arg)
        used = {node.id for node in nodes if isinstance(node, ast.Name)}
        used |= {name for command in commands for name in re.findall(r"\{(\w+)\}", command)}
        assert used <= known


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_programs_flags_and_configs_exist(path):
    runs = 0
    extras = (ROOT / "setup.cfg").read_text()
    for python, commands in code(path):
        assert all(f"\n{extra} =" in extras for extra in re.findall(r'"\[(\w+)\]"', python))
        for words in map(shlex.split, commands):
            if "-m" not in words:
                continue
            module, *options = words[words.index("-m") + 1 :]
            importlib.import_module(module)
            runs += 1
            for name, value in (option.removeprefix("--").split("=", 1) for option in options):
                if name == "config":
                    assert (ROOT / value).is_file()
                else:
                    assert name in flags.FLAGS
    assert runs
