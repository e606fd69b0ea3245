"""What an update costs, as the compiler counts it: against any field, or on slices of any size.

Compile: python -m nvae_jax.tools.costs --config configs/cifar10.py --topology v5e:2x4
           --vary model.num_groups=8,15,30 --json groups.json
Show:    python -m nvae_jax.tools.costs groups.json devices.json --picture costs.png

The real train step is compiled, as by `nvae_jax.tools.aot`, once for every value of `--vary` or for
every slice of `--topology`. A second `--vary` changes along with the first one. See docs/costs.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from nvae_jax.command_line import door
from nvae_jax.config.run import load_run
from nvae_jax.errors import ConfigError
from nvae_jax.measuring.costs import compile_cases, draw_costs, parse_values, read_cases, tables
from nvae_jax.measuring.results import write_json
from nvae_jax.tools.options import at_least, check_file, check_picture, make_parser, parse


def main(argv: Sequence[str] | None = None) -> None:
    """Compiles what the command line describes, or reads its files, and shows it."""
    parser = make_parser(__doc__, config_required=False)
    parser.add_argument("files", nargs="*", metavar="FILE", help="figures of earlier compilations")
    parser.add_argument("--topology", default="", help="TPU slices such as v5e:2x4,v5e:4x4")
    parser.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="FIELD=VALUES",
        help="section.field=value,value; several of them change together",
    )
    parser.add_argument("--images", type=at_least(1), help="images in an epoch, to show its cost")
    parser.add_argument("--json", metavar="FILE", help="file for the figures")
    parser.add_argument("--picture", metavar="FILE", help="file for the picture")
    with door():
        options = parse(parser, argv)
        if (options.config is None) == (not options.files):
            raise ConfigError("either --config with --topology, or files of figures, are required")
        check_file("--json", options.json)
        check_picture("--picture", options.picture)
        if options.files:
            cases = read_cases(options.files)
        else:
            varied = [parse_values(text) for text in options.vary]
            slices = options.topology.split(",") if options.topology else []
            cases = compile_cases(load_run(options.config, options.overrides), slices, varied)
        if not cases:
            raise ConfigError("there is nothing to show; allowed: settings that fit the memory")
        if options.json:
            write_json(options.json, [dataclasses.asdict(case) for case in cases])
        print(tables(cases, options.images))
        if options.picture:
            draw_costs(cases, options.picture)


if __name__ == "__main__":
    main()
