"""SASS instructions of compiled kernels, as nvdisasm and cuobjdump list them.

What counts is the main loop: the innermost one with the most tensor-core instructions, or the longest one
where there are none. A backward branch ends a loop that begins at its target.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);", re.MULTILINE)
_BRANCHES = ("BRA", "BRX", "JMP")

# First part of the mnemonic → class. What is not listed is "other": control, predicates, conversions.
_CLASSES = {
    "tensor": ("HMMA", "HGMMA", "IMMA", "DMMA", "BMMA"),
    "fp32": (
        "FFMA",
        "FADD",
        "FMUL",
        "FSEL",
        "FMNMX",
        "FSETP",
        "FFMA32I",
        "FSET",
        "FCHK",
        "HFMA2",
        "HADD2",
        "HMUL2",
    ),
    "fp64": ("DFMA", "DADD", "DMUL", "DSETP", "DMNMX"),
    "special": ("MUFU", "F2F", "F2I", "I2F", "FRND"),
    "integer": (
        "IADD3",
        "IMAD",
        "LEA",
        "LOP3",
        "SHF",
        "ISETP",
        "IABS",
        "IMNMX",
        "PRMT",
        "SEL",
        "LOP",
        "POPC",
    ),
    "global": ("LDG", "STG", "LDGSTS", "UTMALDG", "UTMASTG", "ATOMG", "ATOM", "RED", "REDG"),
    "shared": ("LDS", "STS", "LDSM", "STSM", "ATOMS"),
    "spill": ("LDL", "STL"),
}
CLASSES = (*_CLASSES, "other")
_CLASS = {name: group for group, names in _CLASSES.items() for name in names}


@dataclass(frozen=True)
class Instruction:
    """Address in bytes; name with its modifiers, e.g. HMMA.1688.F32.TF32; target of a branch."""

    address: int
    name: str
    operands: str = ""
    target: int | None = None

    @property
    def base(self) -> str:
        return self.name.split(".")[0]

    @property
    def group(self) -> str:
        return _CLASS.get(self.base, "other")


@dataclass(frozen=True)
class Program:
    """All instructions of a kernel in order."""

    instructions: tuple[Instruction, ...]

    def count(self, *bases: str) -> int:
        """Count the instructions that have one of these names, modifiers aside."""
        return sum(instruction.base in bases for instruction in self.instructions)

    @property
    def mix(self) -> Counter[str]:
        """Class → instructions, each counted once however often it runs."""
        return Counter(instruction.group for instruction in self.instructions)

    @cached_property
    def main_loop(self) -> Program:
        """The loop that does the work; the whole kernel where there is none."""
        loops = _innermost(
            [
                (branch.target, branch.address)
                for branch in self.instructions
                if branch.target is not None and branch.target < branch.address
            ]
        )
        bodies = [self._between(first, last) for first, last in loops]
        return max(bodies, key=lambda body: (body.mix["tensor"], len(body.instructions)), default=self)

    def _between(self, first: int, last: int) -> Program:
        return Program(tuple(line for line in self.instructions if first <= line.address <= last))


def _innermost(loops: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Loops that contain no other."""
    return [
        (first, last)
        for first, last in loops
        if not any(first <= a and b <= last and (a, b) != (first, last) for a, b in loops)
    ]


def parse(text: str) -> Program:
    """Parse the listing of a kernel, without the padding behind the last instruction."""
    return _program(_LINE.findall(text), 0)


def parse_joined(text: str, sizes: Sequence[int]) -> list[Program]:
    """Parse the listing of kernels one behind the other, of `sizes` bytes; addresses of each start at 0."""
    lines = _LINE.findall(text)
    addresses = [int(address, 16) for address, _, _ in lines]
    starts = list(accumulate(sizes, initial=0))
    bounds = [bisect_left(addresses, start) for start in starts]
    return [
        _program(lines[first:last], start)
        for start, (first, last) in zip(starts, pairwise(bounds), strict=False)
    ]


def _program(lines: Sequence[tuple[str, str, str]], start: int) -> Program:
    instructions = [
        Instruction(int(address, 16) - start, name, operands.strip(), _target(name, operands, start))
        for address, name, operands in lines
    ]
    while instructions and _is_padding(instructions[-1]):
        instructions.pop()
    return Program(tuple(instructions))


def _is_padding(instruction: Instruction) -> bool:
    return instruction.base == "NOP" or instruction.target == instruction.address


def _target(name: str, operands: str, start: int) -> int | None:
    addresses = re.findall(r"0x([0-9a-f]+)", operands)
    return int(addresses[-1], 16) - start if addresses and name.split(".")[0] in _BRANCHES else None
