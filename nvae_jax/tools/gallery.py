"""A page of everything that trained models show, as the modes of `nvae_jax.main` make it.

Command: python -m nvae_jax.tools.gallery runs/digits runs/photos32 --output docs

It writes `gallery.md` and the pictures beside it. Each work directory has a section, and each
picture stands below the command that makes it. A section begins with the text of
`gallery/<name>/words.md`, which describes what the pictures show.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nvae_jax.command_line import door
from nvae_jax.measuring.gallery import page
from nvae_jax.measuring.results import write_text
from nvae_jax.tools.options import at_least, make_parser, parse


def main(argv: Sequence[str] | None = None) -> None:
    """Makes the page of the command line's runs."""
    parser = make_parser(__doc__)
    parser.add_argument("workdirs", nargs="+", type=Path, help="work directories of trained models")
    parser.add_argument("--output", type=Path, default=Path("docs"), help="folder of the page")
    parser.add_argument("--draws", type=at_least(1), default=1000, help="importance weights")
    with door():
        options = parse(parser, argv)
        text = page(options.workdirs, options.output, options.draws)
        write_text(options.output / "gallery.md", text)


if __name__ == "__main__":
    main()
