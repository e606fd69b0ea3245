"""What is installed: the package with its configurations, and nothing of another name."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import nvae_jax
from nvae_jax.packaged import find_config, packaged_names

ROOT = Path(__file__).parents[1]
BUILD = "import sys, setuptools.build_meta as b; print(getattr(b, sys.argv[1])(sys.argv[2]))"


def build(source, what, target):
    """Builds in a folder of sources; returns the path of the file."""
    command = [sys.executable, "-c", BUILD, what, str(target)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=True)
    return target / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel that was built from an sdist, unpacked."""
    source = tmp_path_factory.mktemp("source") / "repository"
    source.mkdir()
    for name in ("nvae_jax", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, source)
    built = tmp_path_factory.mktemp("built")
    with tarfile.open(build(source, "build_sdist", built)) as archive:
        archive.extractall(built, filter="data")
    (unpacked,) = (path for path in built.iterdir() if path.is_dir())
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(build(unpacked, "build_wheel", built)) as archive:
        archive.extractall(folder)
    return folder


def test_a_wheel_has_the_package_and_no_other(wheel):
    assert {path.name.partition("-")[0] for path in wheel.iterdir()} == {"nvae_jax"}
    here = {p.relative_to(ROOT) for p in (ROOT / "nvae_jax").rglob("*.py")}
    here |= {Path("nvae_jax", "configs", p.name) for p in (ROOT / "configs").glob("*.py")}
    assert {p.relative_to(wheel) for p in wheel.rglob("*.py")} == here
    assert (wheel / "nvae_jax/data/builders/checksums.tsv").is_file()
    (distribution,) = importlib.metadata.distributions(path=[str(wheel)])
    assert distribution.version == nvae_jax.__version__
    (command,) = distribution.entry_points
    assert (command.name, command.value) == ("nvae-jax", "nvae_jax.__main__:run")
    required = [line.partition(">")[0] for line in distribution.requires or []]
    assert "jax" in required


def test_configurations_are_found_by_name_where_it_is_installed(wheel, tmp_path):
    program = (
        "import nvae_jax.packaged as p;"
        "from nvae_jax.config.run import read_run;"
        "print(p.find_config('digits_large'));"
        "print(read_run(p.read_config_file('digits_large')).training.epochs)"
    )
    environment = {**os.environ, "PYTHONPATH": str(wheel)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [str(wheel / "nvae_jax/configs/digits_large.py"), "43"]


def test_every_configuration_has_a_name():
    files = (ROOT / "configs").glob("*.py")
    assert packaged_names() == sorted(p.stem for p in files if p.stem != "__init__")
    for name in packaged_names():
        assert find_config(f"{name}:x") == f"{ROOT}/configs/{name}.py:x"
        # In a wheel there is no package of the name `configs`.
        assert "from configs" not in (ROOT / "configs" / f"{name}.py").read_text()


def test_files_come_before_names(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits.py").touch()
    assert find_config("digits.py") == "digits.py"
    assert find_config("digits.py:a:b") == "digits.py:a:b"
    assert find_config("digits") == f"{ROOT}/configs/digits.py"
