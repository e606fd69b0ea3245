"""What lossless compression costs with a trained model: bytes against its NELBO, and time.

Measure: python -m nvae_jax.tools.compression --workdir runs/photos32 --images test --crops 1000
           --lengths 10 100 1000 --batch_sizes 1 4 --json photos32.json
Show:    python -m nvae_jax.tools.compression photos32.json digits.json --picture overhead.png

Every stream is decompressed again, and every image has to come back as it was. See
docs/compression.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from nvae_jax.command_line import door
from nvae_jax.compression.images import named_images
from nvae_jax.errors import ConfigError, require
from nvae_jax.evaluation.trained import open_run
from nvae_jax.measuring.compression import (
    crops,
    draw_overhead,
    measure_compression,
    read_measured,
    tables,
)
from nvae_jax.measuring.results import write_json
from nvae_jax.tools.options import at_least, check_file, check_picture, make_parser, parse


def main(argv: Sequence[str] | None = None) -> None:
    """Measures what the command line describes, or reads its files, and shows it."""
    count = at_least(1)
    parser = make_parser(__doc__)
    parser.add_argument("files", nargs="*", metavar="FILE", help="figures of earlier measurements")
    parser.add_argument("--workdir", metavar="DIR", help="of a trained model")
    parser.add_argument(
        "--images", default="test", help="as of mode compress: test, train:0-99, image files"
    )
    parser.add_argument(
        "--crops",
        type=count,
        metavar="N",
        help="random crops of the photographs of those splits instead, for runs on photos",
    )
    parser.add_argument(
        "--lengths", type=count, nargs="+", metavar="N", help="images of a stream; all by default"
    )
    parser.add_argument("--batch_sizes", type=count, nargs="+", default=[1], metavar="N")
    parser.add_argument("--compare", action="store_true", help="with PNG, WebP and JPEG XL")
    parser.add_argument("--json", metavar="FILE", help="file for the figures")
    parser.add_argument("--picture", metavar="FILE", help="file for the picture")
    with door():
        options = parse(parser, argv)
        if (options.workdir is None) == (not options.files):
            raise ConfigError("either --workdir or files of figures are required")
        require("--json", options.json, not (options.json and options.files), "with --workdir")
        check_file("--json", options.json)
        check_picture("--picture", options.picture)
        if options.files:
            measured = read_measured(options.files)
        else:
            model = open_run(options.workdir)
            names = options.images.split(",")
            if options.crops is None:
                images, _ = named_images(model, names, "--images")
            else:
                images = crops(model, names, options.crops)
            lengths = options.lengths or [len(images)]
            measured = [
                measure_compression(model, images, lengths, options.batch_sizes, options.compare)
            ]
        if options.json:
            write_json(options.json, dataclasses.asdict(measured[0]))
        print(tables(measured))
        if options.picture:
            draw_overhead(measured, options.picture)


if __name__ == "__main__":
    main()
