"""Trains the models of a list alike and compares them on a page.

Command: python -m nvae_jax.tools.comparison LIST.json --seeds 3 --output runs/comparison

The list names configurations, which have to agree in data, batch size and epochs, and settings of
single fields:

    [{"title": "NVAE", "config": "configs/digits.py"},
     {"title": "MMD", "config": "configs/digits_conv_vae.py:mmd",
      "set": {"objective.divergence_scale": 1000.0}}]

Each is trained with every seed in a work directory below `--output`. The same command goes on where
it stopped. The page is `comparison.md` there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nvae_jax.command_line import door
from nvae_jax.compilation import keep_compiled_programs
from nvae_jax.measuring.comparison import compare, read_entries
from nvae_jax.measuring.results import write_text
from nvae_jax.tools.options import at_least, make_parser, parse


def main(argv: Sequence[str] | None = None) -> None:
    """Makes the page of the command line's list."""
    parser = make_parser(__doc__)
    parser.add_argument("list", help="a JSON file, see above")
    parser.add_argument("--seeds", type=at_least(1), default=3, help="runs of each")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs")
    with door():
        options = parse(parser, argv)
        keep_compiled_programs()
        text = compare(read_entries(options.list), options.seeds, options.output)
        write_text(options.output / "comparison.md", text)


if __name__ == "__main__":
    main()
