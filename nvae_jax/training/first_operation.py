"""Which operation of a function is the first whose result is not finite.

The function's jaxpr is run operation by operation, with loops and calls opened up, so that the
answer has a name: the primitive, the module that it belongs to, and the line of the source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

_PACKAGE = Path(__file__).parents[1]
_BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # what primitives call the function that they call


class _FoundError(Exception):
    """Ends the search."""


def first_not_finite(function: Callable[..., Any], *args: Any) -> str | None:
    """Runs a function, and describes the first operation whose result has a NaN or an infinity.

    It takes many times as long as the compiled function, and the memory of all that its gradient
    keeps.

    Args:
      function: of pytrees of arrays.
      *args: on devices of this process.

    Returns: a line; None: all results are finite.
    """
    closed = jax.make_jaxpr(function)(*args)
    try:
        _run(closed.jaxpr, closed.consts, jax.tree.leaves(args))
    except _FoundError as found:
        return str(found)
    return None


def _run(jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    values: dict[Var, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    values |= dict(zip(jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    dying = _last_uses(jaxpr)
    for number, eqn in enumerate(jaxpr.eqns):
        inputs = [read(atom) for atom in eqn.invars]
        values |= dict(zip(eqn.outvars, _outputs(eqn, inputs), strict=True))
        for variable in dying.get(number, ()):
            values.pop(variable, None)
    return [read(atom) for atom in jaxpr.outvars]


def _last_uses(jaxpr: Jaxpr) -> dict[int, list[Var]]:
    """By the number of an equation, the variables that nothing needs after it."""
    last = {
        variable: number
        for number, eqn in enumerate(jaxpr.eqns)
        for variable in (*eqn.invars, *eqn.outvars)
        if isinstance(variable, Var)
    }
    kept = {variable for variable in jaxpr.outvars if isinstance(variable, Var)}
    uses: dict[int, list[Var]] = {}
    for variable, number in last.items():
        if variable not in kept:
            uses.setdefault(number, []).append(variable)
    return uses


def _outputs(eqn: JaxprEqn, inputs: list[Any]) -> list[Any]:
    name, params = eqn.primitive.name, eqn.params
    if name == "scan":
        return _loop(params, inputs)
    if name == "cond":
        return _call(params["branches"][int(inputs[0])], inputs[1:])
    body = next((params[key] for key in _BODIES if key in params), None)
    if isinstance(body, ClosedJaxpr | Jaxpr):
        return _call(body, inputs)
    outputs = eqn.primitive.bind(*inputs, **params)
    outputs = list(outputs) if eqn.primitive.multiple_results else [outputs]
    if bad := sum(map(_not_finite, outputs)):
        raise _FoundError(_description(eqn, inputs, outputs, bad))
    return outputs


def _call(body: ClosedJaxpr | Jaxpr, inputs: Sequence[Any]) -> list[Any]:
    if isinstance(body, ClosedJaxpr):
        return _run(body.jaxpr, body.consts, inputs)
    return _run(body, (), inputs)


def _loop(params: dict[str, Any], inputs: Sequence[Any]) -> list[Any]:
    first, second = params["num_consts"], params["num_consts"] + params["num_carry"]
    consts, carry, stacked = inputs[:first], list(inputs[first:second]), inputs[second:]
    rounds = range(params["length"])
    made = []
    for i in reversed(rounds) if params["reverse"] else rounds:
        results = _call(params["jaxpr"], [*consts, *carry, *(x[i] for x in stacked)])
        carry = results[: params["num_carry"]]
        made.append(results[params["num_carry"] :])
    if params["reverse"]:
        made.reverse()
    return [*carry, *(jnp.stack(values) for values in zip(*made, strict=True))]


def _not_finite(array: Any) -> int:
    """How many numbers of an array are NaN or infinite."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return 0
    return int(array.size - jnp.isfinite(array).sum())


def _description(eqn: JaxprEqn, inputs: list[Any], outputs: list[Any], bad: int) -> str:
    numbers = sum(np.size(x) for x in outputs)
    floats = [x for x in map(jnp.asarray, inputs) if jnp.issubdtype(x.dtype, jnp.floating)]
    ranges = ", ".join(f"{float(x.min()):.3g} to {float(x.max()):.3g}" for x in floats if x.size)
    module = str(eqn.source_info.name_stack)
    place = next(_lines(eqn), "")
    return (
        f"{eqn.primitive.name}{f' in {module}' if module else ''}{place}: {bad} of {numbers} "
        f"results are not finite; it was given {ranges or 'no real numbers'}"
    )


def _lines(eqn: JaxprEqn) -> Iterator[str]:
    """The lines of this package that the operation comes from, the innermost first."""
    traceback: Any = eqn.source_info.traceback
    for frame in traceback.frames if traceback else ():
        path = Path(frame.file_name)
        if path.is_relative_to(_PACKAGE):
            yield f" ({path.relative_to(_PACKAGE.parent)}:{frame.line_num})"
