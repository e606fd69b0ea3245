"""Arithmetic of a traced program, counted from its definition."""

from __future__ import annotations

import math
from typing import Any

from jax.extend import core


def count_flops(program: core.ClosedJaxpr | core.Jaxpr) -> float:
    """Floating-point operations of all matrix products and convolutions, loops included.

    A multiplication and an addition count as two. What the backward pass computes again counts
    again. A branch counts as its costliest; a loop without a fixed number of rounds as one.
    """
    jaxpr: Any = getattr(program, "jaxpr", program)
    return sum(_count(equation) for equation in jaxpr.eqns)


def _count(equation: Any) -> float:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2.0 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        outputs = kernel.shape[parameters["dimension_numbers"].rhs_spec[0]]
        return 2.0 * equation.outvars[0].aval.size * kernel.size / outputs
    if name == "cond":
        return max(count_flops(branch) for branch in parameters["branches"])
    inner = [
        part
        for value in parameters.values()
        for part in (value if isinstance(value, tuple | list) else (value,))
        if isinstance(part, core.ClosedJaxpr | core.Jaxpr)
    ]
    times = parameters["length"] if name == "scan" else 1
    if name == "shard_map":
        times *= parameters["mesh"].size
    return times * sum(count_flops(part) for part in inner)
