"""What went wrong first in a run that cannot go on, as a report for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax import Array

from nvae_jax.model.vae import VAEConfig
from nvae_jax.objectives.base import Turn
from nvae_jax.training.first_operation import first_not_finite
from nvae_jax.training.program import Batch, batch_pixels
from nvae_jax.training.state import TrainState
from nvae_jax.training.step import turn_gradient
from nvae_jax.workdir.integrity import inspected, on_host

REMEDIES = (
    "--config.training.gradient_clip=200, a lower --config.training.learning_rate, a higher "
    "--config.training.regularization, --config.training.skip_threshold=6, or a larger "
    "--config.training.batch_size"
)
_DEPTH = 3  # names of modules from the outside in
_SHOWN = 12


def diagnose(
    config: VAEConfig,
    state: TrainState,
    step: int,
    batch: Batch,
    beta: Array,
    turns: Sequence[Turn],
    flip: bool,
    remedies: str = REMEDIES,
) -> str:
    """The report on the last sound state of a run and the images of the update that failed.

    Args:
      config: the model's configuration.
      state: the state.
      step: the number of that update, from 1.
      batch: the images, as in `Program.batch`.
      beta: the KL's weight then.
      turns: of the objective; all of them see this state.
      flip: as in `make_program`.
      remedies: what helps.
    """

    def measure(params: Any, batch_stats: Any, batch: Batch, seed: Array, step: Array) -> Any:
        key = jax.random.fold_in(jax.random.key(seed), step)
        x = batch_pixels(config.image, batch, seed, flip)
        gradient: Any = {}
        metrics: dict[str, Array] = {}
        for turn in turns:
            partial, (measured, batch_stats) = turn_gradient(
                turn, (params, batch_stats), x, key, beta, 1, 1
            )
            gradient, metrics = {**gradient, **partial}, metrics | measured
        return (gradient, (metrics, batch_stats)), (x.min(), x.max())

    arguments = state.params, state.batch_stats, batch, state.seed, np.int32(step - 1)
    (gradient, (metrics, statistics)), (lowest, highest) = jax.jit(measure)(*arguments)
    unit = " nats per image" if config.has_likelihood else ""
    lines = [
        f"Update {step:,}, with the last sound state and the images of that update:",
        f"  pixels              {float(lowest):.3g} to {float(highest):.3g}",
        *(
            f"  {name:<19} {float(metrics[name]):.6g}{unit}"
            for name in ("nelbo", "reconstruction", "kl")
            if name in metrics
        ),
        "  KL by group, from the top: "
        + " ".join(f"{value:.3g}" for value in np.asarray(metrics.get("group_kl", ()))),
    ]
    sections = {
        "parameters": state.params,
        "batch-norm statistics": state.batch_stats,
        "state of the optimiser": state.opt_state,
        "gradient": gradient,
        "updated batch-norm statistics": statistics,
    }
    broken = {title: inspected(tree)[1] for title, tree in sections.items()}
    for title, names in broken.items():
        lines.append(f"Not finite in the {title}: {len(names)} arrays")
        lines += [f"  {name}" for name in names[:_SHOWN]]
    first = _first_operation(measure, arguments) if broken["gradient"] else "none of the gradient's"
    lines.append(f"First operation that is not finite: {first}")
    lines.append("Largest gradients by module (norm of the gradient, norm of the parameters):")
    lines += _largest(gradient, state.params)
    scales = [x for path, x in flatten_dict(state.params).items() if path[-1] == "scale"]
    variances = [x for path, x in flatten_dict(state.batch_stats).items() if path[-1] == "var"]
    lines.append(f"Batch norm: scales {_range(scales)}; running variances {_range(variances)}")
    lines.append(f"What helps: {remedies}.")
    return "\n".join(lines) + "\n"


def _first_operation(measure: Any, arguments: tuple[Any, ...]) -> str:
    if jax.process_count() > 1:  # operations one by one act on one process's devices
        return "not known of several processes; one process on the same images says it"
    try:
        return first_not_finite(measure, *arguments) or "not known: alone, all are"
    except jax.errors.JaxRuntimeError as error:  # without recomputation it may not fit the memory
        return f"not known ({str(error).splitlines()[0]})"


def _largest(gradient: Any, params: Any) -> list[str]:
    norms: dict[str, list[float]] = {}
    for column, tree in enumerate((gradient, params)):
        for path, leaf in flatten_dict(tree).items():
            squares = norms.setdefault(".".join(path[:_DEPTH]), [0.0, 0.0])
            squares[column] += float(np.square(on_host(leaf), dtype=np.float64).sum())

    def key(item: tuple[str, list[float]]) -> float:
        value = item[1][0]
        return -np.inf if np.isnan(value) else -value

    rows = sorted(norms.items(), key=key)[:_SHOWN]
    return [f"  {name:<40} {g**0.5:10.3g} {p**0.5:10.3g}" for name, (g, p) in rows]


def _range(arrays: Iterable[Any]) -> str:
    values = [on_host(array) for array in arrays]
    if not values:
        return "none"
    return f"{min(map(np.min, values)):.3g} to {max(map(np.max, values)):.3g}"
