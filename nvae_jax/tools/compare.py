"""Validation curves of several runs in one picture, and their last values as a table.

Command: python -m nvae_jax.tools.compare old=runs/a,runs/b new=runs/c --output compare.png

Each argument is a label and the work directories of runs that differ in their seed alone: a line is
their mean, and the shade behind it reaches from the lowest to the highest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nvae_jax.command_line import Parser, door
from nvae_jax.errors import ConfigError, writing
from nvae_jax.workdir import Workdir

Curves = dict[str, tuple[np.ndarray, np.ndarray]]


def read_curves(runs: Mapping[str, Sequence[str]]) -> Curves:
    """Validation NELBO of groups of runs.

    Args:
      runs: work directories by label.

    Returns: by label, the steps (S,) that all runs of a group were validated at, and their NELBO
      (runs, S) in nats an image.

    Raises: ValueError naming a run that has no validation, or a group without a common step.
    """
    curves = {}
    for label, paths in runs.items():
        values = []
        for path in paths:
            records = Workdir(path).records.read_metrics()
            value = {r["step"]: r["validation/nelbo"] for r in records if "validation/nelbo" in r}
            if not value:
                raise ConfigError(f"{path} has no validation in metrics.jsonl")
            values.append(value)
        steps = sorted(set.intersection(*(set(value) for value in values)))
        if not steps:
            raise ConfigError(f"the runs of {label} have no validated step in common")
        curves[label] = np.asarray(steps), np.array([[v[s] for s in steps] for v in values])
    return curves


def draw_comparison(curves: Curves, title: str, path: str) -> None:
    """Writes the picture of `read_curves`'s result to the file `path`."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for label, (steps, values) in curves.items():
        (line,) = axes.plot(steps, values.mean(0), marker=".", label=f"{label} ({len(values)})")
        axes.fill_between(steps, values.min(0), values.max(0), color=line.get_color(), alpha=0.2)
    axes.set(xlabel="step", ylabel="validation NELBO, nats an image", title=title)
    axes.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Compares what the command line names."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="LABEL=DIR,DIR", help="a group of runs")
    parser.add_argument("--output", required=True, help="the picture's file")
    parser.add_argument("--title", default="")
    args = parser.parse_args()
    groups = dict(group.split("=", 1) for group in args.runs if "=" in group)
    if len(groups) < len(args.runs):
        parser.error(f"runs are {args.runs}; allowed: label=directory,directory, each label once")
    with door():
        curves = read_curves({label: paths.split(",") for label, paths in groups.items()})
        with writing(args.output):
            draw_comparison(curves, args.title, args.output)
    for label, (steps, values) in curves.items():
        last = values[:, -1]
        print(
            f"{label}: {last.mean():.2f} nats at step {steps[-1]:,}, from {last.min():.2f} to "
            f"{last.max():.2f} over {len(last)} run(s)"
        )


if __name__ == "__main__":
    main()
