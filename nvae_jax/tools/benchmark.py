"""How fast a configuration runs on this machine, and how near to what the machine can do.

Command: python -m nvae_jax.tools.benchmark --config configs/cifar_bench.py --what train,sample

`--config` is a configuration's .py file or a run's config.json; fields are set as in a run, as
`--config.training.batch_size=16`. With a .json file it requires only JAX, Flax, optax and NumPy,
except for `--what load`, `--real` and `--picture`. `--compare A.json B.json` puts results side by
side. See docs/benchmarks.md.
"""

from __future__ import annotations

from nvae_jax.memory import keep_freed_memory

if __name__ == "__main__":  # not in processes that read data
    keep_freed_memory()  # before the imports below start threads

import os
from collections.abc import Sequence
from typing import Any

import jax

from nvae_jax.command_line import door
from nvae_jax.compilation import keep_compiled_programs
from nvae_jax.config.overrides import with_overrides
from nvae_jax.config.run import load_run, load_settings
from nvae_jax.errors import ConfigError, require
from nvae_jax.measuring.benchmark import PARTS, measure_run
from nvae_jax.measuring.benchmark_report import (
    comparison,
    draw_benchmark,
    draw_scaling,
    from_plain,
    table,
    to_plain,
)
from nvae_jax.measuring.results import read_json, write_json
from nvae_jax.tools.options import at_least, check_file, check_picture, make_parser, parse


def parse_parts(text: str) -> list[str]:
    """The parts that a list with commas names, in the order of measurement.

    Raises:
      ConfigError: there is no such part.
    """
    wanted = text.split(",")
    for name in wanted:
        require("--what", name, name in PARTS, f"{', '.join(PARTS)}, several with commas")
    return [name for name in PARTS if name in wanted]


def choose_devices(number: int | None) -> list[Any]:
    """The first devices of this machine; None: all.

    Raises:
      ConfigError: it has fewer.
    """
    devices = jax.devices()
    require("--devices", number, number is None or number <= len(devices), f"1 to {len(devices)}")
    return devices[:number]


def main(argv: Sequence[str] | None = None) -> None:
    """Measures what the command line describes, or compares its files."""
    parser = make_parser(__doc__, config_required=False)
    positive = at_least(1)
    parser.add_argument("--what", default="train,sample", help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--repeats", type=positive, default=5, help="measurements of each row")
    parser.add_argument("--num_images", type=positive, help="samples to draw at once")
    parser.add_argument("--devices", type=positive, help="how many to use; all by default")
    parser.add_argument("--device_batch", type=positive, help="images per device")
    parser.add_argument("--real", action="store_true", help="a batch of the data, not of noise")
    parser.add_argument("--json", metavar="FILE", help="file for all measurements")
    parser.add_argument("--picture", metavar="FILE", help="file for the parts and the roofline")
    parser.add_argument("--write_config", metavar="FILE", help="only write the configuration")
    parser.add_argument("--compare", nargs="+", metavar="JSON", help="only compare such files")
    with door():
        options = parse(parser, argv)
        if (options.config is None) == (options.compare is None):
            raise ConfigError("either --config or --compare is required")
        check_file("--json", options.json)
        check_file("--write_config", options.write_config)
        check_picture("--picture", options.picture)
        if options.compare:
            benchmarks = [read_json("--compare", path, from_plain) for path in options.compare]
            if options.picture:
                draw_scaling(benchmarks, options.picture)
            print(comparison([os.path.basename(path) for path in options.compare], benchmarks))
        elif options.write_config:
            run = load_run(options.config, options.overrides)
            write_json(options.write_config, run.to_dict())
        else:
            parts, devices = parse_parts(options.what), choose_devices(options.devices)
            overrides = options.overrides
            if options.device_batch:
                overrides |= {"training.batch_size": options.device_batch * len(devices)}
            settings = with_overrides(load_settings(options.config), overrides)
            keep_compiled_programs()
            benchmark = measure_run(
                os.path.basename(options.config),
                settings,
                overrides,
                parts,
                devices,
                options.repeats,
                options.num_images,
                options.real,
            )
            print(table(benchmark))
            if options.json:
                write_json(options.json, to_plain(benchmark))
            if options.picture:
                draw_benchmark(benchmark, options.picture)


if __name__ == "__main__":
    main()
