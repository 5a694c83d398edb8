"""What the compiler makes of every kernel, and how fast each can be at best: without a GPU.

    python -m satclip_engine.kernels.report                                   # tables for sm_80 and sm_90
    python -m satclip_engine.kernels.report --markdown docs/kernels-compiled.md
    python -m satclip_engine.kernels.report --check docs/kernels-compiled.md  # exit status 1 when it differs

A kernel of the table is a kernel with its constants and its configuration; figures are the largest over all
scenes that start it so. compiled/estimate.py says what the estimates assume.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton

from satclip_engine.kernels import scenes
from satclip_engine.kernels.compiled import tables
from satclip_engine.kernels.compiled.binary import Binary, Request, compiled, request
from satclip_engine.kernels.compiled.estimate import (
    estimated,
    programs_at_once,
    roofline,
    tensor_share,
    waves,
)
from satclip_engine.kernels.compiled.gpus import GPUS, Gpu
from satclip_engine.kernels.compiled.sass import CLASSES
from satclip_engine.kernels.launch import Launch
from satclip_engine.kernels.scenes import ODD_SCENES, SCENES, Scene


@dataclass
class Code:
    """A kernel with constants and configuration, compiled for one capability."""

    capability: str
    kernel: str
    constants: str
    shape: str
    warps: int
    registers: int = 0
    stack: int = 0
    spills: int = 0
    shared: int = 0
    at_once: int = 64  # programs on a multiprocessor
    variants: int = 0  # of types and alignment
    instructions: int = 0
    loop: dict[str, int] = field(default_factory=dict)  # the main loop's instructions by class
    tensor_share: float = 0.0  # of peak, that the main loop allows
    error: str = ""

    @property
    def occupancy(self) -> float:
        return self.at_once * self.warps / GPUS[self.capability].warps

    @property
    def stable(self) -> tuple[str, ...]:
        """What does not change with the compiler's version."""
        return self.capability, self.kernel, self.constants, self.shape, str(self.spills + self.stack)


@dataclass
class Step:
    """All launches of one kernel in a scene, with their times at the GPU's peaks."""

    capability: str
    scene: str
    kernel: str
    launches: int = 0
    programs: int = 0
    waves: float = 0.0  # of the launch with the most
    multiply_adds: float = 0.0
    bytes: float = 0.0
    bound: float = 0.0  # seconds
    estimate: float = 0.0  # seconds, see compiled/estimate.py
    limits: dict[str, float] = field(default_factory=dict)  # pipe → seconds

    @property
    def limit(self) -> str:
        return max(self.limits, key=self.limits.__getitem__)


@dataclass(frozen=True)
class Report:
    """Rows of all tables, and what made them."""

    codes: list[Code]
    steps: list[Step]
    rows: dict[str, list[str]]  # capability → rows of tuning.json that were used
    versions: dict[str, str]

    def seconds(self, capability: str, *asked: Scene) -> float:
        """The estimate for some scenes one after the other."""
        names = {scene.name for scene in asked}
        return sum(
            step.estimate for step in self.steps if step.capability == capability and step.scene in names
        )

    @property
    def failures(self) -> list[str]:
        """What must not be shipped."""
        return [
            f"{code.kernel} ({code.constants}; {code.shape}) for {code.capability}: "
            + (code.error or f"{code.spills} spills, {code.stack} bytes of stack")
            for code in self.codes
            if code.error or code.spills or code.stack or not code.at_once
        ]


def report(
    capabilities: Iterable[str] = tuple(GPUS), chosen: Sequence[Scene] = (*SCENES, *ODD_SCENES)
) -> Report:
    """Compile all launches of the scenes and put their figures together."""
    recorded = [
        (capability, scene, scenes.recorded(scene, capability))
        for capability in capabilities
        for scene in chosen
    ]
    launches = [
        _Asked(capability, scene, launch, request(launch, capability))
        for capability, scene, record in recorded
        for launch in record.launches
    ]
    binaries = compiled(each.request for each in launches)
    rows: dict[str, set[str]] = {}
    for capability, _, record in recorded:
        rows.setdefault(capability, set()).update(record.rows)
    return Report(
        _codes(launches, binaries),
        _steps([each for each in launches if each.scene in SCENES], binaries),
        {capability: sorted(names) for capability, names in rows.items()},
        {"triton": triton.__version__, "torch": torch.__version__.split("+")[0]},
    )


@dataclass(frozen=True, eq=False)
class _Asked:
    """A launch of a scene, and what the compiler is asked for."""

    capability: str
    scene: Scene
    launch: Launch
    request: Request

    @property
    def gpu(self) -> Gpu:
        return GPUS[self.capability]

    @property
    def constants(self) -> str:
        return " ".join(f"{name}={_short(value)}" for name, value in scenes.variables(self.launch).items())

    @property
    def shape(self) -> str:
        config = self.launch.config
        blocks = " ".join(f"{name.removeprefix('BLOCK_')}={_short(v)}" for name, v in config.blocks.items())
        return f"{config.row}: {blocks} warps={config.warps} stages={config.stages}"


def _short(value: Any) -> str:
    return str(getattr(value, "name", value))


def _codes(launches: Sequence[_Asked], binaries: dict[str, Binary | Exception]) -> list[Code]:
    codes: dict[tuple[str, ...], Code] = {}
    seen: set[str] = set()
    for each in launches:
        key = (each.capability, each.launch.name, each.constants, each.shape)
        code = codes.setdefault(key, Code(*key, warps=each.launch.config.warps))
        if each.request.key not in seen:
            seen.add(each.request.key)
            _add(code, binaries[each.request.key], each.gpu)
    return sorted(codes.values(), key=lambda code: (code.capability, code.kernel, code.constants, code.shape))


def _add(code: Code, binary: Binary | Exception, gpu: Gpu) -> None:
    """Figures of one more variant: the worst of all are kept."""
    code.variants += 1
    if isinstance(binary, Exception):
        code.error = f"{type(binary).__name__}: {binary}".splitlines()[0]
        return
    code.stack, code.spills = max(code.stack, binary.stack), max(code.spills, binary.spills)
    code.shared = max(code.shared, binary.shared)
    code.at_once = min(code.at_once, programs_at_once(binary, code.warps, gpu))
    if binary.registers > code.registers:
        code.registers = binary.registers
        code.instructions = len(binary.program.instructions)
        code.loop = {group: binary.program.main_loop.mix[group] for group in CLASSES}
        code.tensor_share = tensor_share(binary.program.main_loop, gpu)


def _steps(launches: Sequence[_Asked], binaries: dict[str, Binary | Exception]) -> list[Step]:
    steps: dict[tuple[str, str, str], Step] = {}
    for each in launches:
        key = (each.capability, each.scene.name, each.launch.name)
        binary = binaries[each.request.key]
        if isinstance(binary, Binary):
            _count(steps.setdefault(key, Step(*key)), each, binary)
    return list(steps.values())


def _count(step: Step, each: _Asked, binary: Binary) -> None:
    launch, gpu, work = each.launch, each.gpu, each.launch.work
    programs = math.prod(launch.grid)
    rounds = waves(programs, programs_at_once(binary, launch.config.warps, gpu), gpu)
    ideal = roofline(work, gpu)
    step.launches += 1
    step.programs += programs
    step.waves = max(step.waves, rounds)
    step.multiply_adds += work.tf32 + work.half + work.fp32 + work.fp64
    step.bytes += work.bytes
    step.bound += ideal.bound
    step.estimate += estimated(ideal, tensor_share(binary.program.main_loop, gpu), programs, gpu)
    step.limits = {pipe: step.limits.get(pipe, 0) + seconds for pipe, seconds in ideal.seconds.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m satclip_engine.kernels.report", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--capability", nargs="+", choices=list(GPUS), default=list(GPUS))
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--check", type=Path, metavar="FILE", help="compare with tables written before")
    given = parser.parse_args(arguments)
    found = report(given.capability)
    text = tables.markdown(found)
    if given.markdown:
        given.markdown.write_text(text)
    if given.json:
        given.json.write_text(json.dumps(asdict(found), indent=1) + "\n")
    if not (given.markdown or given.json or given.check):
        print(text, end="")
    problems = found.failures
    if given.check:
        problems += tables.differences(given.check.read_text(), found)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
