"""Validation curves of several runs in one picture, and their last values as a table.

Command: python -m nvae_jax.tools.compare old=runs/a,runs/b new=runs/c --output compare.png

Each argument is a label and the work directories of runs that differ only in their seed: a line is
their mean, and the shade behind it reaches from the lowest to the highest.
"""

from __future__ import annotations

from collections.abc import Sequence

from nvae_jax.command_line import door
from nvae_jax.errors import require
from nvae_jax.measuring.compare import draw_comparison, read_curves, summary
from nvae_jax.tools.options import check_picture, make_parser, parse


def main(argv: Sequence[str] | None = None) -> None:
    """Compares the runs of the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="LABEL=DIR,DIR", help="a group of runs")
    parser.add_argument("--output", required=True, metavar="FILE", help="file for the picture")
    parser.add_argument("--title", default="", help="title of the picture")
    with door():
        options = parse(parser, argv)
        groups = dict(group.split("=", 1) for group in options.runs if "=" in group)
        labelled = len(groups) == len(options.runs)
        require("runs", options.runs, labelled, "label=directory,directory, each label once")
        check_picture("--output", options.output)
        curves = read_curves({label: paths.split(",") for label, paths in groups.items()})
        draw_comparison(curves, options.title, options.output)
        print("\n".join(summary(curves)))


if __name__ == "__main__":
    main()
