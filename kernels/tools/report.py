"""Report of every kernel as compiled, with registers, spills, occupancy and rooflines: without a GPU.

    python -m satclip_engine.kernels.tools.report               # tables for sm_80 and sm_90
    python -m satclip_engine.kernels.tools.report --markdown docs/kernels-compiled.md
    python -m satclip_engine.kernels.tools.report --check docs/kernels-compiled.md    # status 1: it differs

A kernel of the table is a kernel with its constants and its configuration; figures are the largest over all
workloads that start it so. roofline.py says what the estimates assume.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton

from satclip_engine.kernels.launch import Launch
from satclip_engine.kernels.tools import report_tables
from satclip_engine.kernels.tools.compiler import Binary, CompileRequest, compile_all, compile_request
from satclip_engine.kernels.tools.figures import CompiledKernel, KernelReport, KernelTimes
from satclip_engine.kernels.tools.gpus import GPUS, Gpu
from satclip_engine.kernels.tools.roofline import (
    estimate,
    programs_at_once,
    roofline,
    tensor_share,
    waves,
)
from satclip_engine.kernels.tools.sass import CLASSES
from satclip_engine.kernels.tools.workloads import (
    EDGE_WORKLOADS,
    WORKLOADS,
    KernelWorkload,
    free_constants,
    record_launches,
)


def report(
    capabilities: Iterable[str] = tuple(GPUS),
    workloads: Sequence[KernelWorkload] = (*WORKLOADS, *EDGE_WORKLOADS),
) -> KernelReport:
    """Compile all launches of the workloads and put their figures together."""
    records = [
        (capability, workload, record_launches(workload, capability))
        for capability in capabilities
        for workload in workloads
    ]
    launches = [
        _WorkloadLaunch(capability, workload, launch, compile_request(launch, capability))
        for capability, workload, record in records
        for launch in record.launches
    ]
    binaries = compile_all(launch.request for launch in launches)
    rows: dict[str, set[str]] = {}
    for capability, _, record in records:
        rows.setdefault(capability, set()).update(record.rows)
    return KernelReport(
        _compiled_kernels(launches, binaries),
        _kernel_times([launch for launch in launches if launch.workload in WORKLOADS], binaries),
        {capability: sorted(names) for capability, names in rows.items()},
        {"triton": triton.__version__, "torch": torch.__version__.split("+")[0]},
    )


@dataclass(frozen=True, eq=False)
class _WorkloadLaunch:
    """A launch of a workload, and the request that it makes of the compiler."""

    capability: str
    workload: KernelWorkload
    launch: Launch
    request: CompileRequest

    @property
    def gpu(self) -> Gpu:
        return GPUS[self.capability]

    @property
    def constants(self) -> str:
        return " ".join(f"{name}={_short(value)}" for name, value in free_constants(self.launch).items())

    @property
    def config(self) -> str:
        config = self.launch.config
        blocks = " ".join(f"{name.removeprefix('BLOCK_')}={_short(v)}" for name, v in config.blocks.items())
        return f"{config.row}: {blocks} warps={config.warps} stages={config.stages}"


def _short(value: Any) -> str:
    return str(getattr(value, "name", value))


def _compiled_kernels(
    launches: Sequence[_WorkloadLaunch], binaries: dict[str, Binary | Exception]
) -> list[CompiledKernel]:
    kernels: dict[tuple[str, ...], CompiledKernel] = {}
    counted: set[str] = set()
    for launch in launches:
        key = (launch.capability, launch.launch.name, launch.constants, launch.config)
        kernel = kernels.setdefault(key, CompiledKernel(*key, warps=launch.launch.config.warps))
        if launch.request.key not in counted:
            counted.add(launch.request.key)
            _add_variant(kernel, binaries[launch.request.key], launch.gpu)
    return [kernels[key] for key in sorted(kernels)]


def _add_variant(kernel: CompiledKernel, binary: Binary | Exception, gpu: Gpu) -> None:
    """Merge the figures of one more variant: the worst of all remain."""
    kernel.variants += 1
    if isinstance(binary, Exception):
        kernel.error = f"{type(binary).__name__}: {binary}".splitlines()[0]
        return
    kernel.stack, kernel.spills = max(kernel.stack, binary.stack), max(kernel.spills, binary.spills)
    kernel.shared = max(kernel.shared, binary.shared)
    kernel.at_once = min(kernel.at_once, programs_at_once(binary, kernel.warps, gpu))
    if binary.registers > kernel.registers:
        kernel.registers = binary.registers
        kernel.instructions = len(binary.program.instructions)
        kernel.loop = {group: binary.program.main_loop.mix[group] for group in CLASSES}
        kernel.tensor_share = tensor_share(binary.program.main_loop, gpu)


def _kernel_times(
    launches: Sequence[_WorkloadLaunch], binaries: dict[str, Binary | Exception]
) -> list[KernelTimes]:
    times: dict[tuple[str, str, str], KernelTimes] = {}
    for launch in launches:
        key = (launch.capability, launch.workload.name, launch.launch.name)
        binary = binaries[launch.request.key]
        if isinstance(binary, Binary):
            _add_launch(times.setdefault(key, KernelTimes(*key)), launch.launch, binary, launch.gpu)
    return list(times.values())


def _add_launch(times: KernelTimes, launch: Launch, binary: Binary, gpu: Gpu) -> None:
    work, programs = launch.work, math.prod(launch.grid)
    rounds = waves(programs, programs_at_once(binary, launch.config.warps, gpu), gpu)
    ideal = roofline(work, gpu)
    times.launches += 1
    times.programs += programs
    times.waves = max(times.waves, rounds)
    times.multiply_adds += work.tf32 + work.half + work.fp32 + work.fp64
    times.bytes += work.bytes
    times.bound += ideal.bound
    times.estimate += estimate(ideal, tensor_share(binary.program.main_loop, gpu), programs, gpu)
    times.limits = {pipe: times.limits.get(pipe, 0) + seconds for pipe, seconds in ideal.seconds.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m satclip_engine.kernels.tools.report", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--capability", nargs="+", choices=list(GPUS), default=list(GPUS))
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--check", type=Path, metavar="FILE", help="compare with tables written before")
    options = parser.parse_args(arguments)
    figures = report(options.capability)
    text = report_tables.markdown(figures)
    if options.markdown:
        options.markdown.write_text(text)
    if options.json:
        options.json.write_text(json.dumps(asdict(figures), indent=1) + "\n")
    if not (options.markdown or options.json or options.check):
        print(text, end="")
    problems = figures.failures
    if options.check:
        problems += report_tables.differences(options.check.read_text(), figures)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
