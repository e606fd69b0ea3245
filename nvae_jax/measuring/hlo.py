"""What a compiled program moves: bytes of memory and collectives, with loops counted as they run.

XLA's own cost analysis counts the body of a loop once, however often it runs.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re

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
# Operations that only name values, or whose computations are counted on their own.
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
# Inside a fusion these read no more of a value than is used of their result.
_HANDS_ON = {"bitcast", "convert", "copy", "reshape"}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation: `name = kind operation(arguments)attributes`, all as text."""

    name: str
    kind: str
    operation: str
    arguments: str
    attributes: str

    @property
    def operands(self) -> list[str]:
        """Names of the arguments that are values."""
        return re.findall(r"%([\w.\-]+)", self.arguments)

    @property
    def size(self) -> float:
        """Bytes of the result."""
        return sum(size for size, _ in _arrays(self.kind))


# Instructions by name; the last one's result is the computation's.
Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What one run of a program moves, on each device.

    Attributes:
      bytes: read and written in the device's main memory, by operations after fusion. Of an array
        that is only sliced the slices count, of one that is updated in place the update: so do
        loops read and write their stacks.
      collectives: by name, how many are run.
      collective_bytes: by name, bytes of their results.
    """

    bytes: float
    collectives: dict[str, int]
    collective_bytes: dict[str, float]


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
        for instruction in computations[name].values():
            operation = instruction.operation.removesuffix("-start")
            if operation in COLLECTIVES:
                counts[operation] += round(runs)
                # An asynchronous start returns its operand beside its result.
                arrays = _arrays(instruction.kind)
                if operation != "all-reduce" and instruction.operation.endswith("-start"):
                    arrays = arrays[1:2]
                sizes[operation] += runs * sum(size for size, _ in arrays)
            if name not in fused and instruction.operation not in _MOVES_NOTHING:
                total += runs * _moved(instruction, computations[name], computations)
    return Traffic(total, dict(counts), dict(sizes))


def _moved(
    instruction: Instruction, around: Computation, computations: dict[str, Computation]
) -> float:
    """Bytes of main memory that an instruction of the computation `around` reads and writes."""
    written = _parts_written(instruction, around, computations)
    touched = list(zip(_arrays(instruction.kind), written, strict=True))
    for position, operand in enumerate(instruction.operands):
        if operand in around:
            part = min(_part_read(instruction, position, around, computations), 1.0)
            touched += [(array, part) for array in _arrays(around[operand].kind)]
    return sum(part * size for (size, in_main_memory), part in touched if in_main_memory)


def _part_read(
    instruction: Instruction,
    position: int,
    around: Computation,
    computations: dict[str, Computation],
) -> float:
    """The share of an operand that is read; above 1 where it is read more than once."""
    operation = instruction.operation
    if operation == "fusion":
        inside = computations[_fused(instruction)]
        parameters = (i for i in inside.values() if i.operation == "parameter")
        names = [i.name for i in parameters if i.arguments == str(position)]
        return sum(_part_used(name, inside, computations) for name in names)
    if position == 0 and operation in ("dynamic-slice", "slice"):
        return instruction.size / around[instruction.operands[0]].size
    return float(position > 0 or operation != "dynamic-update-slice")


def _part_used(name: str, inside: Computation, computations: dict[str, Computation]) -> float:
    """The share of a value that its users in a fused computation read."""
    if name == list(inside)[-1]:
        return 1.0
    return sum(
        _part_used(user.name, inside, computations)
        if user.operation in _HANDS_ON
        else _part_read(user, position, inside, computations)
        for user in inside.values()
        for position, operand in enumerate(user.operands)
        if operand == name
    )


def _parts_written(
    instruction: Instruction, around: Computation, computations: dict[str, Computation]
) -> list[float]:
    """The share of each array of a result that is written."""
    if instruction.operation == "fusion":
        inside = computations[_fused(instruction)]
        root = _origin(list(inside)[-1], inside)
        results = [root]
        if root.operation == "tuple":
            results = [_origin(name, inside) for name in root.operands]
        return [part for i in results for part in _parts_written(i, inside, computations)]
    if instruction.operation == "dynamic-update-slice":
        return [around[instruction.operands[1]].size / instruction.size]
    return [1.0] * len(_arrays(instruction.kind))


def _origin(name: str, inside: Computation) -> Instruction:
    """The instruction that computes a value, where others only pass it on."""
    instruction = inside[name]
    if instruction.operation in _HANDS_ON:
        return _origin(instruction.operands[0], inside)
    return instruction


def _fused(fusion: Instruction) -> str:
    """The computation that a fusion runs."""
    return dict(_CALLEES.findall(fusion.attributes))["calls"].removeprefix("%")


def _parse(text: str) -> tuple[dict[str, Computation], str]:
    """The computations by name, and the name of the first to run."""
    computations: dict[str, Computation] = {}
    entry, current = "", ""
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            current = header[2]
            computations[current] = {}
            entry = current if header[1] else entry
        elif found := re.match(r"\s+(?:ROOT )?%([\w.\-]+) = (.*)", line):
            name, rest = found.groups()
            end = _closing(rest) if rest.startswith("(") else rest.index(" ")
            kind, rest = rest[:end], rest[end:].lstrip()
            start = rest.index("(")
            end = start + _closing(rest[start:])
            computations[current][name] = Instruction(
                name, kind, rest[:start], rest[start + 1 : end - 1], rest[end:]
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
    computations: dict[str, Computation], name: str, runs: float, times: dict[str, float]
) -> set[str]:
    """Adds to `times` how often a computation and those it calls run; returns the fused ones."""
    times[name] += runs
    fused: set[str] = set()
    for instruction in computations[name].values():
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


def _rounds(loop: Instruction, condition: Computation) -> float:
    """How often a loop runs: as the compiler noted it, or the limit of its counter."""
    if noted := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return float(noted[1])
    limits = [
        int(instruction.arguments)
        for instruction in condition.values()
        if instruction.operation == "constant" and instruction.kind.startswith("s32[]")
    ]
    return float(limits[0]) if len(limits) == 1 else 1.0
