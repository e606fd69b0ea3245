"""How fast batches are read, by our loader and by torch's.

Command: python -m nvae_jax.tools.loading --workers 0 2

It requires scikit-learn, whose photographs it stores in a temporary folder; see docs/data.md.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from nvae_jax.command_line import door
from nvae_jax.measuring.loading import measure_loading, table
from nvae_jax.tools.options import at_least, make_parser, parse


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints, as a table or as JSON."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--workers",
        type=at_least(0),
        nargs="*",
        default=[0, 1, 2],
        help="numbers of worker processes; 0: the process itself",
    )
    parser.add_argument("--repetitions", type=at_least(1), default=5, help="measurements of each")
    parser.add_argument(
        "--seconds", type=at_least(0, float), default=2.0, help="duration of one measurement"
    )
    parser.add_argument("--json", action="store_true", help="print all repetitions as JSON")
    with door():
        options = parse(parser, argv)
        records = measure_loading(options.workers, options.repetitions, options.seconds)
        if options.json:
            print(json.dumps([dataclasses.asdict(record) for record in records], indent=2))
        else:
            print(table(records))


if __name__ == "__main__":
    main()
