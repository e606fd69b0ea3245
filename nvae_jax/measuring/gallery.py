"""A page of everything that trained models show, as the modes of `nvae_jax.main` make it."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nvae_jax.errors import reading, writing
from nvae_jax.evaluation.inputs import fixed_split
from nvae_jax.evaluation.trained import TrainedModel, open_run
from nvae_jax.measuring.results import markdown
from nvae_jax.modes.edit import EditOptions
from nvae_jax.modes.evaluate import EvaluateOptions
from nvae_jax.modes.interpolate import InterpolateOptions
from nvae_jax.modes.neighbors import NeighborsOptions
from nvae_jax.modes.reconstruct import ReconstructOptions
from nvae_jax.modes.sample import SampleOptions
from nvae_jax.modes.table import MODES

ATTRIBUTION = (
    "The photographs are crops of `china.jpg` by danielbuechele "
    "(flickr.com/photos/danielbuechele/6061409035) and of `flower.jpg` "
    "(flickr.com/photos/vultilion/6056698931), both CC BY 2.0, as scikit-learn ships them."
)
_SCORED = 64  # images whose importance-weighted bound is shown
_EXTREMES = 64  # images in each of the two sets of the attribute


@dataclasses.dataclass(frozen=True)
class Exhibit:
    """One or more pictures.

    Attributes:
      title: the heading.
      options: of the mode that makes them.
      text: what they show.
      more: files that the mode writes beside the one that its options name.
    """

    title: str
    options: Any
    text: str
    more: tuple[str, ...] = ()

    @property
    def mode(self) -> str:
        """The mode that the options are of."""
        (name,) = (name for name, (cls, _) in MODES.items() if cls is type(self.options))
        return name

    @property
    def files(self) -> tuple[str, ...]:
        """The pictures, in the work directory."""
        if self.mode == "evaluate":
            return self.more
        name = self.options.name or self.options.operation
        return (f"{self.mode}/{name}.png", *self.more)

    def make(self, model: TrainedModel) -> Any:
        """Runs the mode, which makes the pictures, and returns its result."""
        run: Callable[[TrainedModel, Any], Any] = MODES[self.mode][1]
        return run(model, self.options)

    def command(self, workdir: str) -> str:
        """The command line that makes them."""
        flags = [f"--mode {self.mode} --workdir {workdir}"]
        for field in dataclasses.fields(self.options):
            value = getattr(self.options, field.name)
            if isinstance(value, tuple):
                some = [*value[:4], "…"] if len(value) > 8 else value
                value = ",".join(map(str, some))
            if getattr(self.options, field.name) != field.default:
                flags.append(f"--{field.name}={value}")
        return "python -m nvae_jax.main " + " ".join(flags)


def exhibits(model: TrainedModel, draws: int) -> Iterator[Exhibit]:
    """What is shown of a model; `draws` importance weights per image."""
    height, width, _ = model.config.image.inner_shape
    # From all over the split, whose first images may be similar to each other.
    chosen = np.linspace(0, len(model.dataset.test) - 1, 8).astype(int)
    images = tuple(f"test:{i}" for i in chosen)
    scored = min(_SCORED, len(model.dataset.test))
    yield Exhibit(
        "Likelihood of the test split",
        EvaluateOptions(),
        "KL and active channels of every group, coloured by scale.",
        ("pictures/evaluate_test_1.png",),
    )
    yield Exhibit(
        "Importance-weighted bound",
        EvaluateOptions(draws=draws, images=scored),
        f"The bound on the log-likelihood of the first {scored} test images against the number of "
        "draws.",
        (f"pictures/evaluate_test_{draws}_bounds.png",),
    )
    prior = "From the prior; the same seed at every temperature."
    recalibrated = "With batch-norm statistics of samples at this temperature; the same seed."
    for t, again, text in ((1.0, False, prior), (0.7, False, prior), (0.7, True, recalibrated)):
        name = f"t{t}" + "_recalibrated" * again
        options = SampleOptions(temperature=(t,), columns=16, recalibrate=again, name=name)
        title = f"Samples at temperature {t}" + ", recalibrated" * again
        yield Exhibit(title, options, text)
    yield Exhibit(
        "What the scales hold",
        ReconstructOptions(images=images, temperature=(0.7,)),
        "A test image, then an image that shares none of its scales, its coarsest scale, its two "
        "coarsest, … up to all, which is its reconstruction; the rest is drawn from the prior, "
        "with the same draws in all columns.",
    )
    yield Exhibit(
        "Paths from image to image",
        InterpolateOptions(images=images),
        "Spherical in the prior's standard-normal draws.",
        ("interpolate/interpolation_animated.gif",),
    )
    yield Exhibit(
        "Paths in posterior means",
        InterpolateOptions(images=images, space="latents", name="linear"),
        "The same ends, linear in the latents.",
    )
    yield Exhibit(
        "Scales of two images mixed",
        EditOptions("mix", images),
        "Two images; then the k coarsest scales of the first with the others of the second, from "
        "k = 0 on.",
    )
    finest = model.config.num_scales - 1
    yield Exhibit(
        "The finest scale varied",
        EditOptions("vary", images, scales=(finest,), name="vary_fine"),
        "An image, its reconstruction, and six variations with the finest scale drawn anew.",
    )
    yield Exhibit(
        "The coarsest scale varied",
        EditOptions("vary", images, scales=(0,), space="noise", name="vary_coarse"),
        "The coarsest scale drawn anew; the others keep their draws, relative to it.",
    )
    bright, dark = brightest_and_darkest(model)
    yield Exhibit(
        "An attribute: bright and dark",
        EditOptions("attribute", images, having=bright, lacking=dark),
        f"The difference between the mean latents of the {_EXTREMES} brightest and the "
        f"{_EXTREMES} darkest training images, added -2, -1, 0, 1 and 2 times.",
    )
    yield Exhibit(
        "A region filled in",
        EditOptions("inpaint", images, region=(height // 2, 0, height - height // 2, width)),
        "An image, what was kept of it, and six fillings by a pseudo-Gibbs chain, which is "
        "approximate.",
    )
    yield Exhibit(
        "Nearest training images",
        NeighborsOptions(num_images=8),
        "A sample, its five nearest training images by pixels, and its five nearest at 8 x 8.",
    )


def brightest_and_darkest(model: TrainedModel) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the training images with the highest and the lowest mean levels."""
    source = fixed_split(model.dataset, "train")
    order = np.argsort([source[i].mean() for i in range(len(source))], kind="stable")
    number = min(_EXTREMES, len(source) // 2)
    bright, dark = order[-number:], order[:number]
    return tuple(f"train:{i}" for i in bright), tuple(f"train:{i}" for i in dark)


def page(workdirs: list[Path], output: Path, draws: int) -> str:
    """Makes the pictures of trained models, and returns the page about them in Markdown.

    Args:
      workdirs: work directories of the models.
      output: folder of the page; pictures go into its folder `gallery`.
      draws: importance weights per image.

    Raises:
      ConfigError: a folder holds no trained model, or a file cannot be written.
    """
    lines = [
        "# Gallery",
        "",
        "Made by `python -m nvae_jax.tools.gallery`; [Modes](modes.md) describes all modes.",
        "",
    ]
    # All are opened before the first is used, because its pictures take long.
    for path, model in [(path, open_run(path)) for path in workdirs]:
        lines += section(path, model, output, draws)
    return "\n".join(lines).rstrip() + "\n"


def section(path: Path, model: TrainedModel, output: Path, draws: int) -> list[str]:
    """Makes the pictures of one model; returns lines of Markdown."""
    lines = [f"## {path.name}", "", f"{model.dataset.name}, after {model.step:,} steps.", ""]
    if model.dataset.name == "photos":
        lines += [ATTRIBUTION, ""]
    folder = output / "gallery" / path.name
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    words = folder / "words.md"
    if words.exists():
        with reading("words", words, "a text", UnicodeDecodeError):
            lines += [words.read_text(encoding="utf-8").strip(), ""]
    for exhibit in exhibits(model, draws):
        result = exhibit.make(model)
        command = exhibit.command(str(path))
        lines += [f"### {exhibit.title}", "", f"`{command}`", "", exhibit.text, ""]
        if exhibit.mode == "evaluate":
            lines += likelihood_table(result)
        if exhibit.mode == "neighbors":
            lines += [neighbors_sentence(result), ""]
        for file in exhibit.files:
            copy = folder / Path(file).name
            copy_enlarged(path / file, copy)
            lines += [f"![{exhibit.title}]({copy.relative_to(output)})", ""]
    return lines


def copy_enlarged(source: Path, target: Path) -> None:
    """Copies a picture; a small PNG file is enlarged, so that a page shows its details."""
    with writing(target), Image.open(source) as picture:
        if source.suffix != ".png" or picture.width > 600:
            shutil.copyfile(source, target)
            return
        factor = 1200 // max(picture.width, 400)
        size = (factor * picture.width, factor * picture.height)
        picture.resize(size, Image.Resampling.NEAREST).save(target)


def likelihood_table(report: dict[str, Any]) -> list[str]:
    """NELBO, its parts and the bounds."""
    rows = [(name, report[name]) for name in ("nelbo", "reconstruction", "kl")]
    rows += [(f"-log p(x), {bound['draws']:,} draws", bound) for bound in report["bounds"]]
    cells = [
        {
            "": name,
            "nats per image": f"{x['nats']:.2f}",
            "standard error": f"{x['standard_error']:.2f}",
            "bits/dim": f"{x['bits_per_dim']:.4f}",
        }
        for name, x in rows
    ]
    return [*markdown(cells), ""]


def neighbors_sentence(report: dict[str, Any]) -> str:
    """How close samples and test images are to training images."""
    parts = [
        f"{measure} {report[measure]['mean_nearest_of_samples']:.3f} for samples and "
        f"{report[measure]['mean_nearest_of_test_images']:.3f} for test images"
        for measure in ("pixels", "downsampled")
    ]
    return f"Mean distance to the nearest training image: {'; '.join(parts)}."
