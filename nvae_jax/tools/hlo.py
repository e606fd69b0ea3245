"""What a compiled program moves: bytes of memory and collectives, with loops counted as they run.

XLA's own cost analysis counts the body of a loop once, however often it runs.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from typing import Any

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
)

_BITS = {"pred": 8, "token": 0, "opaque": 0, "s4": 4, "u4": 4}
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
_CALLEES = re.compile(r"(calls|to_apply|body|condition|branch_computations)=(\{[^}]*\}|%[\w.\-]+)")
# They only name or rename values, or their computations are counted on their own.
_MOVES_NOTHING = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
    "partition-id",
}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation: `name = kind operation(arguments)attributes`, all as text."""

    name: str
    kind: str
    operation: str
    arguments: str
    attributes: str


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What one run of a program moves, on each device.

    Attributes:
      bytes: read and written in the device's main memory, by operations after fusion.
      collectives: by name, how many are run.
      collective_bytes: by name, bytes of their results.
    """

    bytes: float
    collectives: dict[str, int]
    collective_bytes: dict[str, float]


def peak_memory(compiled: Any) -> int:
    """Bytes that a compiled program takes on each device, all together.

    Arguments, temporaries, results that are not written over arguments, and the program itself.
    """
    memory = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.generated_code_size_in_bytes
    )


def traffic(text: str) -> Traffic:
    """Adds up a program as `compiled.as_text()` prints it.

    Loops whose number of rounds is not in the program count as one round.
    """
    computations, entry = _parse(text)
    times: dict[str, float] = collections.defaultdict(float)
    fused = _count_runs(computations, entry, 1.0, times)
    total = 0.0
    counts: dict[str, int] = collections.defaultdict(int)
    sizes: dict[str, float] = collections.defaultdict(float)
    for name, runs in times.items():
        kinds = {i.name: i.kind for i in computations[name]}
        for instruction in computations[name]:
            operation = instruction.operation.removesuffix("-start")
            if operation in COLLECTIVES:
                counts[operation] += round(runs)
                # An asynchronous start returns its operand beside its result.
                arrays = _arrays(instruction.kind)
                if operation != "all-reduce" and instruction.operation.endswith("-start"):
                    arrays = arrays[1:2]
                sizes[operation] += runs * sum(size for size, _ in arrays)
            if name not in fused and instruction.operation not in _MOVES_NOTHING:
                operands = re.findall(r"%([\w.\-]+)", instruction.arguments)
                touched = [instruction.kind, *(kinds.get(name, "") for name in operands)]
                arrays = [a for kind in touched for a in _arrays(kind)]
                total += runs * sum(size for size, in_main_memory in arrays if in_main_memory)
    return Traffic(total, dict(counts), dict(sizes))


def _parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """The computations by name, and the name of the first to run."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", ""
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            current = header[2]
            computations[current] = []
            entry = current if header[1] else entry
        elif found := re.match(r"\s+(?:ROOT )?%([\w.\-]+) = (.*)", line):
            name, rest = found.groups()
            end = _closing(rest) if rest.startswith("(") else rest.index(" ")
            kind, rest = rest[:end], rest[end:].lstrip()
            start = rest.index("(")
            end = start + _closing(rest[start:])
            computations[current].append(
                Instruction(name, kind, rest[:start], rest[start + 1 : end - 1], rest[end:])
            )
    return computations, entry


def _closing(text: str) -> int:
    """The position behind the parenthesis that closes the first one."""
    depth = 0
    for position, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return position + 1
    raise ValueError(f"unbalanced parentheses: {text[:80]!r}")


def _arrays(kind: str) -> list[tuple[float, bool]]:
    """(bytes, whether in main memory) of every array in the text of a type."""
    arrays = []
    for dtype, dims, layout in _ARRAY.findall(kind):
        digits = re.search(r"\d+", dtype)
        bits = _BITS.get(dtype, int(digits[0]) if digits else 8)
        size = math.prod(map(int, dims.split(","))) if dims else 1
        arrays.append((size * bits / 8, "S(" not in layout))
    return arrays


def _count_runs(
    computations: dict[str, list[Instruction]], name: str, runs: float, times: dict[str, float]
) -> set[str]:
    """Adds to `times` how often a computation and those it calls run; returns the fused ones."""
    times[name] += runs
    fused: set[str] = set()
    for instruction in computations[name]:
        callees = {
            role: re.findall(r"%([\w.\-]+)", names)
            for role, names in _CALLEES.findall(instruction.attributes)
        }
        for role, names in callees.items():
            for callee in names:
                rounds = 1.0
                if role == "body":
                    rounds = _rounds(instruction, computations[callees["condition"][0]])
                if instruction.operation not in ("while", "conditional", "call"):
                    fused.add(callee)
                fused |= _count_runs(computations, callee, runs * rounds, times)
    return fused


def _rounds(loop: Instruction, condition: list[Instruction]) -> float:
    """How often a loop runs: as the compiler noted it, or the limit that its counter is held to."""
    if noted := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return float(noted[1])
    limits = [
        int(instruction.arguments)
        for instruction in condition
        if instruction.operation == "constant" and instruction.kind.startswith("s32[]")
    ]
    return float(limits[0]) if len(limits) == 1 else 1.0
