"""Training and sampling in turns with the same network in PyTorch, on this machine's GPU or CPU.

    pip install torch
    python tests/race.py --config configs/cifar_bench.py

Each side is a process of its own, as its users would start it. They take turns, because the machine
changes more from hour to hour than most programs differ: look at the ratio of neighbours.
"""

import argparse
import functools
import pathlib
import statistics
import subprocess
import sys
import time

SIDES = ("nvae_jax", "pytorch")
TASKS = ("update", "sample")
RUNS = 5  # in a row, as in training


def our_tasks(model, training):
    """Functions that wait for their results."""
    import jax
    import numpy as np

    from nvae_jax.compilation import jit_on
    from nvae_jax.evaluation.sampling import make_draw
    from nvae_jax.measuring.workloads import Workload
    from nvae_jax.model.folding import fold
    from nvae_jax.parallel import make_mesh

    work = Workload(model, training, make_mesh(), repeats=1)
    folded = jax.jit(functools.partial(fold, model))(work.state.eval_variables)
    draw = jit_on(work.mesh, make_draw(model))
    indices = np.arange(training.batch_size, dtype=np.uint32)
    temperatures = np.ones(model.total_groups, np.float32)

    def update():
        work.state, metrics = work.program.update(work.state, work.batch)
        jax.block_until_ready((work.state, metrics))

    def sample():
        jax.block_until_ready(draw(folded, indices, np.uint32(0), temperatures))

    return {"update": update, "sample": sample}


def pytorch_tasks(model, training):
    """The same in PyTorch."""
    import jax
    import numpy as np
    import torch
    from pytorch_network import Network

    from nvae_jax.model import variable_shapes
    from nvae_jax.objectives.elbo import balance_targets

    on_gpu = torch.cuda.is_available()
    torch.set_default_device("cuda" if on_gpu else "cpu")
    rng = np.random.default_rng(0)
    shapes = variable_shapes(model)
    variables = jax.tree.map(lambda x: rng.uniform(-0.1, 0.1, x.shape).astype(x.dtype), shapes)
    variables["batch_stats"] = jax.tree.map(np.abs, variables["batch_stats"])
    network = Network(model, variables)
    optimizer = torch.optim.Adamax(
        network.leaves, training.learning_rate, eps=1e-3, weight_decay=training.weight_decay
    )
    targets = torch.tensor(np.asarray(balance_targets(model, training.kl_balance)))
    height, width, channels = model.image_shape
    images = torch.randint(256, (training.batch_size, channels, height, width)) / 255
    if model.likelihood == "bernoulli":
        images = images.round()

    def noise():
        return [torch.randn(training.batch_size, z, h, w) for h, w, z in model.latent_shapes]

    def update():
        optimizer.zero_grad()
        loss = network.loss(images, noise(), 0.5, targets)
        (loss + training.regularization * network.penalty()).backward()
        optimizer.step()
        wait()

    @torch.no_grad()
    def sample():
        torch.sigmoid(network.decode(None, noise(), False)[0])
        wait()

    def wait():
        if on_gpu:
            torch.cuda.synchronize()

    return {"update": update, "sample": sample}


def serve(side, path):
    """Runs the tasks that the input names, line by line, and prints their seconds."""
    if side == "nvae_jax":
        from nvae_jax.memory import keep_freed_memory

        keep_freed_memory()  # as main does, before the imports below start threads
    from nvae_jax.compilation import keep_compiled_programs
    from nvae_jax.config.run import load_run, load_settings
    from nvae_jax.measuring.benchmark import with_data

    keep_compiled_programs()
    run = load_run(with_data(load_settings(path)))
    model, training = run.model, run.training
    tasks = (our_tasks if side == "nvae_jax" else pytorch_tasks)(model, training)
    for task in TASKS:
        for _ in range(2):
            tasks[task]()
    print("ready", flush=True)
    for line in sys.stdin:
        task = tasks[line.strip()]
        task()  # for the caches, which the other side has filled
        start = time.perf_counter()
        for _ in range(RUNS):
            task()
        print((time.perf_counter() - start) / RUNS, flush=True)


class Side:
    """A process that serves."""

    def __init__(self, name, path):
        command = [sys.executable, __file__, "--config", path, "--serve", name]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args} ended with {self.process.wait()}")
        return line.strip()

    def seconds(self, task):
        print(task, file=self.process.stdin, flush=True)
        return float(self.read())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
    if arguments.serve:
        serve(arguments.serve, arguments.config)
        return
    sides = {}
    for name in SIDES:  # one after the other: compilation takes all cores
        sides[name] = Side(name, arguments.config)
        sides[name].read()
    for task in TASKS:
        seconds = {name: [] for name in SIDES}
        for _ in range(arguments.rounds):
            for name, side in sides.items():
                seconds[name].append(side.seconds(task))
        for name, values in seconds.items():
            low, middle, high = min(values), statistics.median(values), max(values)
            print(f"{task:8}{name:10}{middle * 1e3:8.0f} ms ({low * 1e3:.0f} to {high * 1e3:.0f})")
        ratios = [ours / theirs for ours, theirs in zip(*seconds.values(), strict=True)]
        print(f"{task:8}{'ratio':10}{statistics.median(ratios):8.2f}    of neighbours, median")


if __name__ == "__main__":
    main()
