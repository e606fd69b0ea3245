"""The train step and its parts, one by one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from nvae_jax.compilation import jit_on
from nvae_jax.measuring.compiled import Compiled, compile_for
from nvae_jax.measuring.timing import WARM_UP, Row, measure
from nvae_jax.measuring.workloads import STEPS_PER_EPOCH, Workload
from nvae_jax.model.tower import loop_unroll
from nvae_jax.objectives.base import Turn
from nvae_jax.training.optimizer import make_links
from nvae_jax.training.program import batch_pixels
from nvae_jax.training.step import averaged, make_turns, mean_over_parts

BETA, REGULARIZATION = 0.5, 1e-2  # as in the middle of training; any weights cost the same


def update(work: Workload) -> list[Row]:
    """The update as a whole. It advances the state of `work` by some steps."""
    step, counts = _warm_update(work)
    seconds = measure({"step": step}, work.repeats)["step"]
    return [Row("update", "step", seconds, work.training.batch_size, **counts)]


def train(work: Workload) -> list[Row]:
    """The update and its parts, see `split`. It advances the state of `work` by some steps.

    An update of several turns, or without regularisers, is measured as a whole only.
    """
    step, step_counts = _warm_update(work)
    turns = make_turns(work.model, work.training, STEPS_PER_EPOCH, work.objective)
    calls: dict[str, Callable[[], Any]] = {}
    counts: dict[str, dict[str, Any]] = {}
    if len(turns) == 1 and work.training.regularization:  # or it has other parts than these
        calls, counts = _parts(work, turns[0])
    seconds = measure({"step": step, **calls}, work.repeats)
    rows = [Row("train", "step", seconds["step"], work.training.batch_size, **step_counts)]
    for name, values in split(seconds).items() if calls else ():
        rows.append(Row("train", name, values, **counts.get(name, {})))
    return rows


def _warm_update(work: Workload) -> tuple[Callable[[], Any], dict[str, Any]]:
    """A function that does an update, when some are done already, and the counts of an update."""
    update = compile_for(work.program.update, work.state, work.batch, devices=work.mesh.size)

    def step() -> Any:
        work.state, metrics = update.call(work.state, work.batch)
        return metrics

    # The first update has more rounds of power iteration; the parts are measured on a later state.
    for _ in range(WARM_UP):
        jax.block_until_ready(step())
    peak = (work.mesh.devices.flat[0].memory_stats() or {}).get("peak_bytes_in_use")
    return step, {**update.counts, "peak": peak}


def split(seconds: Mapping[str, list[float]]) -> dict[str, list[float]]:
    """The parts of a step, which add up to it in every repeat.

    `backward` is the time of the gradient less that of the forward pass, `rest` the time of the
    step less that of its parts one by one; it is negative where the compiler joins parts.

    Args:
      seconds: of `step`, `input`, `forward`, `gradient`, `spectral` and `optimiser`.
    """
    taken = {name: np.asarray(values) for name, values in seconds.items()}
    parts = {name: taken[name] for name in ("input", "forward")}
    parts["backward"] = taken["gradient"] - taken["forward"]
    parts |= {name: taken[name] for name in ("spectral", "optimiser")}
    parts["rest"] = taken["step"] - sum(parts.values())
    return {name: values.tolist() for name, values in parts.items()}


def _parts(
    work: Workload, turn: Turn
) -> tuple[dict[str, Callable[[], Any]], dict[str, dict[str, Any]]]:
    """The functions that `split` requires beside the step, and the counts of each, by name."""
    training, devices = work.training, work.mesh.size
    key = jax.random.key(training.seed)
    links = make_links(training, STEPS_PER_EPOCH, work.mesh)
    spectral = links.pop("spectral")
    others = optax.named_chain(*links.items())
    compiled: dict[str, Compiled] = {}
    calls: dict[str, Callable[[], Any]] = {}

    def add(name: str, function: Callable[..., Any], get: Callable[[], tuple[Any, ...]]) -> Any:
        """Compiles a part and returns what it computes."""
        part = compiled[name] = compile_for(jit_on(work.mesh, function), *get(), devices=devices)
        # Read at every call, because an update overwrites the state before it.
        calls[name] = lambda: part.call(*get())
        return calls[name]()

    def prepare(batch: dict[str, Array], seed: Array) -> Array:
        return batch_pixels(work.model.image, batch, seed, work.flip)

    def over_parts(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(params: Any, batch_stats: Any, x: Array, key: Array) -> Any:
            def part(x: Array, key: Array) -> Any:
                return function(params, batch_stats, x, key, jnp.asarray(BETA))

            unroll = loop_unroll(work.model)
            return mean_over_parts(part, x, key, training.accumulation_steps, unroll)

        return run

    regularize = functools.partial(spectral.update, regularization=REGULARIZATION)
    update_others = functools.partial(others.update, regularization=REGULARIZATION)

    def optimise(gradient: Any, opt_state: Any, params: Any, ema_params: Any) -> Any:
        updates, opt_state = update_others(gradient, opt_state, params)
        params = optax.apply_updates(params, updates)
        return params, averaged(training, params, ema_params), opt_state

    x = add("input", prepare, lambda: (work.batch, work.state.seed))

    def images() -> tuple[Any, ...]:
        return work.state.params, work.state.batch_stats, x, key

    add("forward", over_parts(turn.loss), images)
    gradient, _ = add("gradient", over_parts(jax.grad(turn.loss, has_aux=True)), images)

    def of_spectral() -> tuple[Any, ...]:
        return gradient, work.state.opt_state["spectral"], work.state.params

    def of_others() -> tuple[Any, ...]:
        states = work.state.opt_state
        others = type(states)((name, states[name]) for name in links)
        return gradient, others, work.state.params, work.state.ema_params

    add("spectral", regularize, of_spectral)
    add("optimiser", optimise, of_others)
    counts = {name: part.counts for name, part in compiled.items()}
    counts["backward"] = {"flops": compiled["gradient"].flops - compiled["forward"].flops}
    return calls, counts
