"""The mode `export`: the model as functions that run with JAX alone, and its weights by name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from typing import Any

import jax
from etils import epath

from nvae_jax.command_line import validate
from nvae_jax.compilation import compiler_options
from nvae_jax.errors import require
from nvae_jax.evaluation.exported import PLATFORMS, export_functions
from nvae_jax.evaluation.trained import TrainedModel
from nvae_jax.evaluation.weights import named, to_safetensors
from nvae_jax.modes.results import save_report
from nvae_jax.workdir.files import remove


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Options of `export`.

    Attributes:
      platforms: what the functions are compiled for, cpu, cuda, rocm or tpu, separated by commas;
        by default what is here
      batch_size: images that a function accepts at a time
      name: the name of the folder below export/
    """

    platforms: tuple[str, ...] | None = None
    batch_size: int = 16
    name: str = "model"

    def __post_init__(self):
        validate(self, "batch_size")
        known = self.platforms is None or set(self.platforms) <= set(PLATFORMS)
        require("platforms", self.platforms, known, ", ".join(PLATFORMS))


def export(model: TrainedModel, options: ExportOptions = ExportOptions()) -> str:
    """Writes the model to `export/<name>/` in the work directory, to be used without this package.

    `manifest.json` describes the files and the functions in them, each
    `<function>.<platform>.stablehlo`, for `jax.export.deserialize`; see
    `nvae_jax.evaluation.exported`. `weights.safetensors` has the weights, by name.

    Args:
      model: the model.
      options: what for.

    Returns: the path of the manifest.
    """
    here = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    files: dict[str, dict[str, Any]] = {}
    functions: dict[str, Any] = {}

    def save(name: str, content: bytes) -> str:
        model.workdir.write(f"export/{options.name}/{name}", content)
        files[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        return name

    settings = {"config": json.dumps(model.run.to_dict()), "step": str(model.step)}
    save("weights.safetensors", to_safetensors(named(model.variables), settings))
    for platform in options.platforms or (here,):
        for name, exported in export_functions(model, platform, options.batch_size).items():
            file = save(f"{name}.{platform}.stablehlo", bytes(exported.serialize()))
            described = functions.setdefault(name, _described(exported))
            described["files"][platform] = file
    report = {
        "step": model.step,
        "jax": jax.__version__,
        "batch_size": options.batch_size,
        "compiler_options": {p: compiler_options(p) for p in options.platforms or (here,)},
        "functions": functions,
        "files": files,
    }
    target = epath.Path(save_report(model, f"export/{options.name}/manifest", report))
    for old in target.parent.glob("*.stablehlo"):
        if old.name not in files:  # it was exported before, for another platform
            remove(old)
    size = sum(file["bytes"] for file in files.values()) / 2**20
    model.workdir.log(f"{len(functions)} functions and the weights, {size:.1f} MiB: {target}")
    return os.fspath(target)


def _described(exported: jax.export.Exported) -> dict[str, Any]:
    """The arguments of a function and what it returns, and its files by platform."""

    def shapes(tree: Any, leaves: Any) -> Any:
        described = [[list(leaf.shape), str(leaf.dtype)] for leaf in leaves]
        return jax.tree.unflatten(tree, described)

    arguments, _ = shapes(exported.in_tree, exported.in_avals)
    return {
        "arguments": arguments,
        "returns": shapes(exported.out_tree, exported.out_avals),
        "files": {},
    }
