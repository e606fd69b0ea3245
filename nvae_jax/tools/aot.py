"""Whether a run fits, and what it moves: compiles the real train step for devices not at hand.

Command: python -m nvae_jax.tools.aot --config configs/ffhq256.py --topology v5e:4x8 [--fit]

`--topology` names a TPU slice, generation and chips, or GPUs, such as h100:8 (docs/scaling.md).
Neither has to be at hand, but their compilers: `pip install libtpu`, or `pip install -e
'.[gpu_compile]'`. Without it, the step is compiled for the devices of this machine. `--fit` looks
for the first setting that fits the memory: with more and more recomputation in the backward pass,
then with the batch in more and more parts. `--json FILE` keeps the figures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from nvae_jax.command_line import door
from nvae_jax.config.run import load_run
from nvae_jax.errors import ConfigError
from nvae_jax.measuring.aot import candidates, search
from nvae_jax.measuring.results import write_json
from nvae_jax.measuring.topologies import GPUS, make_devices
from nvae_jax.parallel import make_mesh
from nvae_jax.tools.options import check_file, make_parser, parse
from nvae_jax.training.fitting import GIB

# What a compiler cannot count without the card, on which it would try its choices.
GPU_LEAVES_OUT = (
    "compiled without the card: cuDNN's workspace, which tuning on the card chooses, is not in the "
    "figures"
)


def main(argv: Sequence[str] | None = None) -> None:
    """Compiles the run of the command line and prints what it requires."""
    parser = make_parser(__doc__, config_required=True)
    parser.add_argument("--topology", help="such as v5e:4x8 or h100:8; this machine by default")
    parser.add_argument("--fit", action="store_true", help="find remat and batch parts that fit")
    parser.add_argument("--json", metavar="FILE", help="file for the figures")
    with door():
        options = parse(parser, argv)
        check_file("--json", options.json)
        run = load_run(options.config, options.overrides)
        model, training = run.model, run.training
        devices, limit = make_devices(options.topology)
        mesh = make_mesh(devices, training.parameter_shards)
        where = options.topology or devices[0].device_kind
        memory = "" if limit is None else f" of {limit / GIB:.1f} GiB"
        size = training.batch_size
        print(f"{where}: {mesh.size} device(s){memory}, {size} images, {model.dtype}")
        if (options.topology or "").partition(":")[0] in GPUS:
            print(GPU_LEAVES_OUT)
        tried = candidates(model, training, mesh) if options.fit else [(model, training)]
        reports, fits = search(tried, mesh, limit, run.objective)
        if options.json:
            write_json(options.json, [dataclasses.asdict(report) for report in reports])
        if not fits:
            way = "" if options.fit else "--fit, "
            raise ConfigError(
                f"the run does not fit {where}; allowed: {way}more devices, or more "
                "training.parameter_shards"
            )


if __name__ == "__main__":
    main()
