"""Families and objectives side by side: trained alike, measured alike, on one page."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from nvae_jax.config.overrides import check_name
from nvae_jax.config.run import RunConfig, load_run
from nvae_jax.errors import reading, require, writing
from nvae_jax.evaluation.distances import frechet_distance, gaussian, kernel_distance
from nvae_jax.evaluation.inputs import fixed_split, read_pixels
from nvae_jax.evaluation.latents import decode_latents, encode_images
from nvae_jax.evaluation.random_features import random_features
from nvae_jax.evaluation.sampling import sample_batches
from nvae_jax.evaluation.trained import TrainedModel, open_run
from nvae_jax.measuring.gallery import copy_enlarged
from nvae_jax.measuring.results import markdown
from nvae_jax.model import variable_shapes
from nvae_jax.modes.codes import CodesOptions, codes
from nvae_jax.modes.results import save_report
from nvae_jax.training.loop import train
from nvae_jax.workdir import Workdir

_BATCH = 64  # images at a time, on each device
RESULT = "comparison"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A model that is compared.

    Attributes:
      title: of its row; it is also the name of its runs' folders.
      run: how it is trained, with any seed.
    """

    title: str
    run: RunConfig

    def with_seed(self, seed: int) -> RunConfig:
        """The run with a seed."""
        training = dataclasses.replace(self.run.training, seed=seed)
        return dataclasses.replace(self.run, training=training)

    def folder(self, seed: int) -> str:
        """The name of the folder of that run."""
        return f"{self.title.lower().replace(' ', '_')}_{seed}"


# The columns of the table: what to call them, and their format.
COLUMNS = {
    "parameters": ("parameters", ",.0f"),
    "seconds": ("s per update", ".3f"),
    "nelbo": ("NELBO, nats", ".2f"),
    "bits": ("bits/dim", ".4f"),
    "squared_error": ("squared error", ".5f"),
    "kl": ("KL, nats", ".2f"),
    "mutual_information": ("mutual information", ".2f"),
    "total_correlation": ("total correlation", ".2f"),
    "dimension_wise": ("dimension-wise KL", ".2f"),
    "mmd": ("MMD² to the prior", ".5f"),
    "active": ("active latents", ",.0f"),
    "frechet": ("Fréchet distance", ".4f"),
    "kernel": ("kernel distance", ".5f"),
    "probe": ("probe accuracy", ".3f"),
    "class_accuracy": ("class accuracy", ".3f"),
}


def read_entries(path: str) -> list[Entry]:
    """The list in a JSON file: objects with `title`, `config` and, if wanted, `set`.

    `config` is a configuration file, as `--config` names it; `set` has values by dotted name.

    Raises:
      ConfigError: the file cannot be read or is no such list, or entries are not trained alike.
    """
    allowed = "a JSON list of objects with title, config and, if wanted, set"
    broken = (ValueError, KeyError, TypeError, AttributeError)
    with reading("list", path, allowed, *broken), open(path, encoding="utf-8") as file:
        given = [
            (str(x["title"]), str(x["config"]), dict(x.get("set", {}))) for x in json.load(file)
        ]
    entries = []
    for title, config, overrides in given:
        for name in overrides:
            check_name(name)
        entries.append(Entry(title, load_run(config, overrides)))
    titles = [entry.title for entry in entries]
    require("list", titles, len(set(titles)) == len(titles) > 0, "one title for each entry")
    runs = [entry.run for entry in entries]
    for name in ("data", "training.epochs", "training.batch_size"):
        section, _, field = name.partition(".")
        values = [
            getattr(getattr(run, section), field) if field else getattr(run, section)
            for run in runs
        ]
        same = all(value == values[0] for value in values)
        require(name, values, same, "the same in every entry of the list")
    return entries


def compare(entries: Sequence[Entry], seeds: int, output: Path) -> str:
    """Trains and measures every entry with seeds from 0 on; nothing that is done is repeated.

    Args:
      entries: what to compare.
      seeds: how many runs of each.
      output: the folder of the runs, and of the page's pictures below `pictures`.

    Returns: the page, in Markdown.
    """
    measured: dict[str, list[dict[str, float]]] = {}
    for entry in entries:
        measured[entry.title] = []
        for seed in range(seeds):
            run, path = entry.with_seed(seed), output / entry.folder(seed)
            last = train(run, path)
            assert last is not None  # nobody asks it to stop
            measured[entry.title].append(_measured(path))
    pictures = {entry.title: _pictures(output, entry) for entry in entries}
    return _page(entries[0].run, measured, pictures, seeds)


def _measured(path: Path) -> dict[str, float]:
    """What is measured of a trained run, kept in its folder."""
    workdir = Workdir(path)
    file = path / f"{RESULT}.json"
    step = workdir.checkpoints.latest_step()
    workdir.checkpoints.close()
    if file.exists():
        with reading(RESULT, file, "a whole file, or none", ValueError, KeyError):
            kept = json.loads(file.read_text(encoding="utf-8"))
            if kept.pop("step") == step:
                return kept
    model = open_run(path)
    values = measure(model)
    save_report(model, RESULT, {"step": model.step, **values})
    return values


def measure(model: TrainedModel) -> dict[str, float]:
    """The columns of the table that mean something for a trained run.

    Reconstructions are decoded means of mean codes, and samples decoded means; both are compared
    with the grey levels of the test images, also where the model sees them binarised.
    """
    records = model.workdir.records.read_metrics()
    last = next(r for r in reversed(records) if "validation/reconstruction" in r)
    speeds = [r["train/steps_per_second"] for r in records if "train/steps_per_second" in r]
    sizes = jax.tree.leaves(variable_shapes(model.config)["params"])
    values = {
        "parameters": float(sum(math.prod(x.shape) for x in sizes)),
        "seconds": float(1 / np.median(speeds)),
    }
    validated = {"nelbo": "nelbo", "bits": "nelbo_bits_per_dim", "kl": "kl"}
    values |= _found(last, {name: f"validation/{metric}" for name, metric in validated.items()})

    test = fixed_split(model.dataset, "test")
    index = np.arange(len(test))
    image = model.config.image
    grey = image.without_border(
        read_pixels(dataclasses.replace(image, binarize=False, num_bits=8), test, index)
    )
    latents = encode_images(model, read_pixels(image, test, index), 0.0, batch_size=_BATCH)
    decoded = decode_latents(model, latents.values, batch_size=_BATCH)
    values["squared_error"] = float(np.square(decoded - grey).mean(dtype=np.float64))

    ones = np.ones(model.config.total_groups, np.float32)
    samples = np.concatenate([x for _, x in sample_batches(model, len(test), ones, 0, _BATCH)])
    real, fake = random_features(grey), random_features(samples)
    values["frechet"] = frechet_distance(*gaussian(real), *gaussian(fake))
    values["kernel"], _ = kernel_distance(real, fake)

    report = codes(model, CodesOptions(batch_size=_BATCH))
    groups = report["groups"]
    values["mmd"] = float(np.mean([group["mmd"] for group in groups]))
    values["active"] = float(sum(group["active"] for group in groups))
    if "probe" in groups[0]:
        values["probe"] = max(group["probe"]["accuracy"] for group in groups)
    parts = ("mutual_information", "total_correlation", "dimension_wise")
    values |= _found(report.get("information", {}), dict(zip(parts, parts, strict=True)))
    return values | _found(report.get("classes", {}), {"class_accuracy": "accuracy"})


def _found(report: Mapping[str, float], names: Mapping[str, str]) -> dict[str, float]:
    """Entries of a report by the names of their columns, of those that it has."""
    return {column: report[name] for column, name in names.items() if name in report}


def _pictures(output: Path, entry: Entry) -> dict[str, Path]:
    """The last pictures of an entry's first run, copied for the page, by what they show."""
    path = output / entry.folder(0)
    found = {
        "samples": sorted(path.glob("pictures/samples_*.png"))[-1:],
        "reconstructions": sorted(path.glob("pictures/reconstructions_*.png"))[-1:],
        "codes": sorted(path.glob("codes/test.png")),
        "classes": sorted(path.glob("codes/*_classes.png")),
    }
    folder = output / "pictures"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    copies = {}
    for name, files in found.items():
        for file in files:
            copies[name] = folder / f"{entry.folder(0)}_{name}.png"
            copy_enlarged(file, copies[name])
    return copies


def _page(
    run: RunConfig,
    measured: Mapping[str, Sequence[Mapping[str, float]]],
    pictures: Mapping[str, Mapping[str, Path]],
    seeds: int,
) -> str:
    everything = {name for runs in measured.values() for values in runs for name in values}
    columns = {name: column for name, column in COLUMNS.items() if name in everything}
    rows = []
    for title, runs in measured.items():
        row = {"": title}
        for name, (heading, form) in columns.items():
            row[heading] = _cell([one[name] for one in runs if name in one], form)
        rows.append(row)
    lines = [
        f"## {run.data.name}",
        "",
        f"{run.training.epochs} epochs of {run.training.batch_size} images per update, "
        f"{seeds} seeds each: mean ± standard deviation. Of several groups of latents, active ones "
        "are summed, MMD² is the mean, and the probe that of the best group. Fréchet and kernel "
        "distance are those of samples to test images among features of a random network.",
        "",
        *markdown(rows),
        "",
    ]
    for name in ("samples", "reconstructions", "codes", "classes"):
        shown = {title: files[name] for title, files in pictures.items() if name in files}
        if shown:
            lines += [f"### {name.capitalize()}", ""]
        for title, file in shown.items():
            lines += [f"{title}:", "", f"![{name} of {title}](pictures/{file.name})", ""]
    return "\n".join(lines).rstrip() + "\n"


def _cell(values: Sequence[float], form: str) -> str:
    """A mean and the spread of several seeds."""
    if not values:
        return "-"
    mean = f"{np.mean(values):{form}}"
    return mean if len(set(values)) == 1 else f"{mean} ± {np.std(values, ddof=1):{form}}"
