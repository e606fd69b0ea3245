"""The mode `export`: the same images in a process that has JAX alone, and weights by name."""

import json
import subprocess
import sys
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from tiny import ONE_DEVICE, make_run

import nvae_jax
from nvae_jax.api import Run
from nvae_jax.errors import ConfigError
from nvae_jax.evaluation import trained
from nvae_jax.evaluation.trained import open_run
from nvae_jax.evaluation.weights import named, read_safetensors, unnamed
from nvae_jax.modes.export import ExportOptions, export

DOCUMENTED = Path(__file__).parents[1] / "docs" / "howto" / "export.md"
SIZE, SEED = 4, 5


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run(open_run(make_run(tmp_path_factory.mktemp("run")), ONE_DEVICE))


@pytest.fixture(scope="module")
def folder(run):
    run.trained.workdir.write("export/model/sample.tpu.stablehlo", b"of an earlier export")
    return Path(export(run.trained, ExportOptions(batch_size=SIZE))).parent


def documented_program():
    """The program of the page, which imports NumPy and JAX alone."""
    return DOCUMENTED.read_text().partition("```python\n")[2].partition("```")[0]


def test_another_process_draws_the_same_images_with_jax_alone(run, folder, tmp_path):
    latents = run.encode(run.images("test:0-3"), seed=SEED, batch_size=SIZE)
    x = tmp_path / "x.npy"
    np.save(x, run.images("test:0-3"))
    program = f"""
import sys
sys.modules["nvae_jax"] = None
{documented_program()}
x, index, seed = np.load({str(x)!r}), np.arange({SIZE}, dtype=np.uint32), np.uint32({SEED})
encoded = load("encode")(prepared, x, index, seed, np.float32(1))
latents, given = encoded["values"], np.ones(({SIZE}, 4), bool)
decoded = load("decode")(prepared, latents, given, index, seed, np.ones(4, np.float32))
np.savez("out.npz", images, decoded, *latents)
"""
    program = program.replace("runs/digits/export/model", str(folder)).replace(
        'platform, seed = "cpu", 0', f'platform, seed = "cpu", {SEED}'
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = np.load(tmp_path / "out.npz")
    images = run.sample(SIZE, temperature=0.8, seed=SEED, batch_size=SIZE)
    np.testing.assert_array_equal(found["arr_0"], images)
    for g, z in enumerate(latents.values):
        np.testing.assert_array_equal(found[f"arr_{2 + g}"], z)
    images = run.decode(latents, seed=SEED, batch_size=SIZE)
    np.testing.assert_array_equal(found["arr_1"], images)


def test_the_manifest_describes_the_files(run, folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["step"] == 7
    assert set(manifest["files"]) == {p.name for p in folder.iterdir()} - {"manifest.json"}
    sample = manifest["functions"]["sample"]
    assert sample["returns"] == [[SIZE, 28, 28, 1], "float32"]
    assert sample["arguments"][1:] == [[[SIZE], "uint32"], [[], "uint32"], [[4], "float32"]]
    weights = manifest["functions"]["prepare"]["arguments"][0]
    arrays, description = read_safetensors(folder / "weights.safetensors")
    assert {name: list(x.shape) for name, x in arrays.items()} == {
        name: shape for name, (shape, _) in weights.items()
    }
    assert json.loads(description["config"])["model"]["num_scales"] == 2


def test_weights_come_back_from_their_names(run, folder, monkeypatch):
    chex.assert_trees_all_equal(unnamed(named(run.variables)), run.variables)
    other = jax.tree.map(lambda x: 0 * x, run.trained.variables)
    monkeypatch.setattr(trained, "make_mesh", lambda: ONE_DEVICE)
    file = folder / "weights.safetensors"
    again = nvae_jax.load(run.trained.workdir.path, weights=file)
    chex.assert_trees_all_equal(again.variables, run.variables)
    chex.assert_trees_all_equal_shapes_and_dtypes(again.variables, other)


def test_other_weights_are_refused_by_name(run, folder, tmp_path):
    content = (folder / "weights.safetensors").read_bytes()
    path = run.trained.workdir.path
    (tmp_path / "cut.safetensors").write_bytes(content[:-8])
    with pytest.raises(ConfigError, match=r"weights is .*cut.safetensors.* cannot be read"):
        nvae_jax.load(path, weights=tmp_path / "cut.safetensors")
    name = next(iter(named(run.variables)))
    (tmp_path / "other.safetensors").write_bytes(
        content.replace(name.encode(), name[::-1].encode())
    )
    with pytest.raises(
        ConfigError, match=rf"the shape of ({name}|{name[::-1]}) in .*other.safeten"
    ):
        nvae_jax.load(path, weights=tmp_path / "other.safetensors")


def test_the_library_of_the_format_reads_the_file(run, folder):
    library = pytest.importorskip("safetensors.numpy")
    arrays = library.load_file(folder / "weights.safetensors")
    chex.assert_trees_all_equal(arrays, dict(named(run.variables)))


def test_unknown_platforms_are_refused():
    with pytest.raises(ConfigError, match=r"platforms is \('vulkan',\); allowed: cpu, cuda"):
        ExportOptions(platforms=("vulkan",))
