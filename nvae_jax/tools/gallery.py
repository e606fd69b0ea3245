"""A page of everything that trained models show, made by the modes of `nvae_jax.main`.

Command: python -m nvae_jax.tools.gallery runs/digits runs/photos32 --output docs

It writes `gallery.md` and the pictures beside it. Each work directory is a section, each picture
stands below the command that makes it. What you see in them goes into `gallery/<name>/words.md`,
which the section begins with.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nvae_jax.command_line import Parser, door
from nvae_jax.errors import writing
from nvae_jax.evaluation.inputs import fixed_split
from nvae_jax.evaluation.trained import TrainedModel, open_run
from nvae_jax.modes.edit import EditOptions, edit
from nvae_jax.modes.evaluate import EvaluateOptions, evaluate
from nvae_jax.modes.interpolate import InterpolateOptions, interpolate
from nvae_jax.modes.neighbors import NeighborsOptions, neighbors
from nvae_jax.modes.reconstruct import ReconstructOptions, reconstruct
from nvae_jax.modes.sample import SampleOptions, sample

ATTRIBUTION = (
    "The photographs are crops of `china.jpg` by danielbuechele "
    "(flickr.com/photos/danielbuechele/6061409035) and of `flower.jpg` "
    "(flickr.com/photos/vultilion/6056698931), both CC BY 2.0, as scikit-learn ships them."
)
_SCORED = 64  # images whose importance-weighted bound is shown
_EXTREMES = 64  # images in each of the two sets of the attribute


@dataclasses.dataclass(frozen=True)
class Exhibit:
    """One picture or more: a mode, its options, the files that it writes, and what they are."""

    title: str
    mode: str
    run: Callable[[Any, Any], Any]
    options: Any
    files: tuple[str, ...]
    text: str

    def command(self, workdir: str) -> str:
        """The command line that does the same."""
        flags = [f"--mode {self.mode} --workdir {workdir}"]
        for field in dataclasses.fields(self.options):
            value = getattr(self.options, field.name)
            if value == field.default:
                continue
            if isinstance(value, tuple):
                some = [*map(str, value[:4]), "…"] if len(value) > 8 else map(str, value)
                value = ",".join(some)
            flags.append(f"--{field.name}={value}")
        return "python -m nvae_jax.main " + " ".join(flags)


def exhibits(model: TrainedModel, draws: int) -> list[Exhibit]:
    """What is shown of a model; `draws` of the importance-weighted bound."""
    height, width, _ = model.config.image.inner_shape
    bright, dark = brightest_and_darkest(model)
    finest = model.config.num_scales - 1
    # From all over the split, whose first images may be neighbours.
    chosen = np.linspace(0, len(model.dataset.test) - 1, 8).astype(int)
    images = tuple(f"test:{i}" for i in chosen)
    return [
        Exhibit(
            "Likelihood of the test split",
            "evaluate",
            evaluate,
            EvaluateOptions(),
            ("pictures/evaluate_test_1.png",),
            "KL and active channels of every group, coloured by scale.",
        ),
        Exhibit(
            "Importance-weighted bound",
            "evaluate",
            evaluate,
            EvaluateOptions(draws=draws, images=_SCORED),
            (f"pictures/evaluate_test_{draws}_bounds.png",),
            f"The bound of the log-likelihood of the first {_SCORED} test images by the number of "
            "draws.",
        ),
        *(
            Exhibit(
                f"Samples at temperature {temperature}",
                "sample",
                sample,
                SampleOptions(
                    temperature=(temperature,),
                    columns=16,
                    recalibrate=recalibrate,
                    name=f"t{temperature}" + "_recalibrated" * recalibrate,
                ),
                (f"sample/t{temperature}" + "_recalibrated" * recalibrate + ".png",),
                "With batch-norm statistics of samples at this temperature; the seed is the same."
                if recalibrate
                else "From the prior; the same seed at every temperature.",
            )
            for temperature, recalibrate in ((1.0, False), (0.7, False), (0.7, True))
        ),
        Exhibit(
            "What the scales hold",
            "reconstruct",
            reconstruct,
            ReconstructOptions(images=images, temperature=(0.7,)),
            ("reconstruct/reconstructions.png",),
            "A test image, then images that share nothing with it but the draws, its coarsest "
            "scale, its two coarsest, … up to all, which is its reconstruction.",
        ),
        Exhibit(
            "Ways from image to image",
            "interpolate",
            interpolate,
            InterpolateOptions(images=images),
            ("interpolate/interpolation.png", "interpolate/interpolation_animated.gif"),
            "Spherical in the prior's standard-normal draws.",
        ),
        Exhibit(
            "Ways in posterior means",
            "interpolate",
            interpolate,
            InterpolateOptions(images=images, space="latents", name="linear"),
            ("interpolate/linear.png",),
            "The same ends, linear in the latents.",
        ),
        Exhibit(
            "Scales of two images mixed",
            "edit",
            edit,
            EditOptions("mix", images),
            ("edit/mix.png",),
            "Two images; then the first one's k coarsest scales with the second one's others, "
            "from k = 0 on.",
        ),
        Exhibit(
            "The finest scale varied",
            "edit",
            edit,
            EditOptions("vary", images, scales=(finest,), name="vary_fine"),
            ("edit/vary_fine.png",),
            "An image, its reconstruction, and the same with the finest scale drawn anew.",
        ),
        Exhibit(
            "The coarsest scale varied",
            "edit",
            edit,
            EditOptions("vary", images, scales=(0,), space="noise", name="vary_coarse"),
            ("edit/vary_coarse.png",),
            "The coarsest scale drawn anew; the others keep their draws, relative to it.",
        ),
        Exhibit(
            "An attribute: bright and dark",
            "edit",
            edit,
            EditOptions("attribute", images, having=bright, lacking=dark),
            ("edit/attribute.png",),
            f"The difference between the mean latents of the {_EXTREMES} brightest and the "
            f"{_EXTREMES} darkest training images, added -2, -1, 0, 1 and 2 times.",
        ),
        Exhibit(
            "A region filled in",
            "edit",
            edit,
            EditOptions("inpaint", images, region=(height // 2, 0, height - height // 2, width)),
            ("edit/inpaint.png",),
            "An image, what was left of it, and six fillings by a pseudo-Gibbs chain, an "
            "approximation.",
        ),
        Exhibit(
            "Nearest training images",
            "neighbors",
            neighbors,
            NeighborsOptions(num_images=8),
            ("neighbors/neighbors.png",),
            "A sample, its five nearest training images by pixels, and its five nearest at 8 x 8.",
        ),
    ]


def brightest_and_darkest(model: TrainedModel) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the training images with the highest and with the lowest mean level."""
    source = fixed_split(model.dataset, "train")
    order = np.argsort([source[i].mean() for i in range(len(source))], kind="stable")
    number = min(_EXTREMES, len(source) // 2)
    bright, dark = order[-number:], order[:number]
    return tuple(f"train:{i}" for i in bright), tuple(f"train:{i}" for i in dark)


def section(path: Path, output: Path, draws: int) -> list[str]:
    """Makes the pictures of a work directory; returns lines of Markdown."""
    model = open_run(path)
    lines = [f"## {path.name}", "", f"{model.dataset.name}, after {model.step:,} steps.", ""]
    if model.dataset.name == "photos":
        lines += [ATTRIBUTION, ""]
    folder = output / "gallery" / path.name
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    words = folder / "words.md"
    if words.exists():
        lines += [words.read_text().strip(), ""]
    for exhibit in exhibits(model, draws):
        result = exhibit.run(model, exhibit.options)
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
    """Copies a picture; a small PNG file is enlarged, so that a page shows what is in it."""
    with Image.open(source) as picture:
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
    return [
        "| | nats per image | standard error | bits/dim |",
        "|---|---|---|---|",
        *(
            f"| {name} | {x['nats']:.2f} | {x['standard_error']:.2f} | {x['bits_per_dim']:.4f} |"
            for name, x in rows
        ),
        "",
    ]


def neighbors_sentence(report: dict[str, Any]) -> str:
    """How near samples and test images come to training images."""
    parts = [
        f"by {measure} {report[measure]['mean_nearest_of_samples']:.3f} for samples and "
        f"{report[measure]['mean_nearest_of_test_images']:.3f} for test images"
        for measure in ("pixels", "downsampled")
    ]
    return f"Mean distance to the nearest training image: {'; '.join(parts)}."


def main() -> None:
    """Makes the page that the command line names."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("workdirs", nargs="+", type=Path, help="work directories of trained models")
    parser.add_argument("--output", type=Path, default=Path("docs"), help="folder of the page")
    parser.add_argument("--draws", type=int, default=1000, help="of the importance-weighted bound")
    args = parser.parse_args()
    lines = [
        "# Gallery",
        "",
        "Made by `python -m nvae_jax.tools.gallery`; [modes.md](modes.md) says what else there is.",
        "",
    ]
    with door():
        for path in args.workdirs:
            lines += section(path, args.output, args.draws)
        with writing(args.output):
            (args.output / "gallery.md").write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
