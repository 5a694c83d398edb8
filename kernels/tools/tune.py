"""Autotuner: the fastest configuration of each kernel on the GPU at hand.

    python -m satclip_engine.kernels.tools.tune                  # all rows of tuning.json: what would change
    python -m satclip_engine.kernels.tools.tune dense --write    # one row, written to tuning.json
    python -m satclip_engine.kernels.tools.tune --compile sm_90  # no GPU: registers, spills, estimates

Candidates (candidates.py) are compiled, those that spill or do not fit are dropped, and the rest, best
estimate first, run in the workloads that use the row. A candidate whose results differ from those of the
present configuration by more than rounding is wrong and dropped. Compared is the time of the row's own
launches.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from satclip_engine.files import write_atomically
from satclip_engine.kernels import tuning
from satclip_engine.kernels.launch import Launch, capability, interpreted, recording
from satclip_engine.kernels.tools import workloads
from satclip_engine.kernels.tools.candidates import CANDIDATES
from satclip_engine.kernels.tools.compiler import Binary, compile_all, compile_request
from satclip_engine.kernels.tools.gpus import GPUS, Gpu
from satclip_engine.kernels.tools.roofline import estimate, programs_at_once, roofline, tensor_share
from satclip_engine.kernels.tools.workloads import EDGE_WORKLOADS, WORKLOADS, KernelWorkload
from satclip_engine.kernels.tuning import Config, config_for, trying

ALL_WORKLOADS = (*WORKLOADS, *EDGE_WORKLOADS)  # where a candidate must not spill; measured are WORKLOADS
MAX_MEASURED = 12  # candidates of a row that run, those with the best estimates
MAX_TIME_RATIO = 0.97  # of the present time: what is not 3 % faster is not worth other bits
# Of the results' rms, between two configurations: other orders of summation; "fast" rounds to bfloat16.
TOLERANCE = {"exact": 1e-4, "fast": 5e-2}

Timer = Callable[[Sequence[Launch]], float]  # launches → seconds of all of them


@dataclass(frozen=True)
class CompiledCandidate:
    """A candidate with the figures of its machine code, the worst of all its launches."""

    config: Config
    registers: int = 0
    spills: int = 0
    shared: int = 0
    at_once: int = 0
    share: float = 0.0  # of the tensor cores' peak, the least of all launches
    estimate: float = math.inf  # seconds of all its launches in the workloads
    error: str = ""

    @property
    def sound(self) -> bool:
        return not self.error and not self.spills and self.at_once > 0

    def __str__(self) -> str:
        figures = f"{self.registers} registers, {self.spills} spills, {self.shared / 1024:.0f} KiB"
        return f"{config_text(self.config)}: " + (
            self.error
            or f"{figures}, {self.at_once} at once, tensor {self.share:.0%}, {self.estimate * 1e6:.0f} µs"
        )


@dataclass(frozen=True)
class TuningResult:
    """Result of tuning a row: seconds of the present configuration and of the best one."""

    row: str
    present: Config
    best: Config
    before: float
    after: float

    @property
    def improves(self) -> bool:
        return self.after < MAX_TIME_RATIO * self.before

    def __str__(self) -> str:
        gain = f"{self.before * 1e6:.1f} → {self.after * 1e6:.1f} µs"
        return (
            f"{self.row}: {config_text(self.best)}, {gain}" if self.improves else f"{self.row}: stays, {gain}"
        )


def config_text(config: Config) -> str:
    """Format as BLOCK_N=128 BLOCK_K=32 warps=8 stages=3."""
    return " ".join(f"{name}={value}" for name, value in config.blocks.items()) + (
        f" warps={config.warps} stages={config.stages}"
    )


def users(
    row: str, capability: str, candidates: Sequence[KernelWorkload] = WORKLOADS
) -> list[KernelWorkload]:
    """Select the workloads in which a row of the table is used."""
    return [
        workload for workload in candidates if row in workloads.record_launches(workload, capability).rows
    ]


def rank(
    row: str, used: Sequence[KernelWorkload], configs: Iterable[Config], gpu: Gpu
) -> list[CompiledCandidate]:
    """Compile candidates and sort them, the best first, as far as that can be known without running them."""
    launches = [(config, _row_launches(row, config, used, gpu)) for config in configs]
    requests = {
        id(launch): compile_request(launch, gpu.capability) for _, group in launches for launch in group
    }
    binaries = compile_all(requests.values())
    candidates = [
        _judge(config, [(launch, binaries[requests[id(launch)].key]) for launch in group], gpu)
        for config, group in launches
    ]
    return sorted(candidates, key=lambda candidate: (not candidate.sound, candidate.estimate))


def _row_launches(row: str, config: Config, used: Sequence[KernelWorkload], gpu: Gpu) -> list[Launch]:
    with trying(row, config):
        launches = [
            launch
            for workload in used
            for launch in workloads.record_launches(workload, gpu.capability).launches
        ]
    return [launch for launch in launches if launch.config.row == row]


def _judge(
    config: Config, launches: Sequence[tuple[Launch, Binary | Exception]], gpu: Gpu
) -> CompiledCandidate:
    for _, binary in launches:
        if isinstance(binary, Exception):
            return CompiledCandidate(config, error=f"{type(binary).__name__}: {binary}".splitlines()[0][:100])
    sound = [(launch, binary) for launch, binary in launches if isinstance(binary, Binary)]
    shares = [tensor_share(binary.program.main_loop, gpu) for _, binary in sound]
    times = [
        estimate(roofline(launch.work, gpu), share, math.prod(launch.grid), gpu)
        for (launch, _), share in zip(sound, shares, strict=True)
    ]
    return CompiledCandidate(
        config,
        registers=max(binary.registers for _, binary in sound),
        spills=max(binary.spills + binary.stack for _, binary in sound),
        shared=max(binary.shared for _, binary in sound),
        at_once=min(programs_at_once(binary, config.warps, gpu) for _, binary in sound),
        share=min(shares),
        estimate=sum(times),
    )


def tune(
    row: str, used: Sequence[KernelWorkload], configs: Iterable[Config], device: torch.device, timer: Timer
) -> TuningResult:
    """Measure configurations of a row in the workloads that use it; those that give wrong answers lose."""
    present = config_for(row, capability(device))
    expected = [_outputs(workload, device) for workload in used]
    before = _seconds(row, present, used, device, timer)
    best, after = present, before
    for config in configs:
        try:
            if not _agrees(row, config, used, expected, device):
                continue
            seconds = _seconds(row, config, used, device, timer)
        except (
            RuntimeError,
            ValueError,
        ) as error:  # it does not start: too much memory, a shape it cannot take
            print(f"{row}: {config_text(config)}: {error}", file=sys.stderr)
            continue
        if seconds < after:
            best, after = config, seconds
    return TuningResult(row, present, best, before, after)


def _outputs(workload: KernelWorkload, device: torch.device) -> list[Any]:
    return [result.double() for result in workloads.run(workload, device)]


def _agrees(
    row: str,
    config: Config,
    used: Sequence[KernelWorkload],
    expected: Sequence[Sequence[Any]],
    device: torch.device,
) -> bool:
    with trying(row, config):
        results = [_outputs(workload, device) for workload in used]
    return all(
        _near(result, reference, TOLERANCE[workload.precision])
        for workload, tensors, references in zip(used, results, expected, strict=True)
        for result, reference in zip(tensors, references, strict=True)
    )


def _near(a: Any, b: Any, tolerance: float) -> bool:
    """True where the rms of the difference is below that share of the rms of b; never for NaN."""
    error, size = (a - b).square().mean().sqrt(), b.square().mean().sqrt()
    return bool(error <= tolerance * size)


def _seconds(
    row: str, config: Config, used: Sequence[KernelWorkload], device: torch.device, timer: Timer
) -> float:
    """Time the row's own launches, with the other kernels' results as their operands."""
    total = 0.0
    for workload in used:
        with trying(row, config), recording(capability(device), executes=True) as record:
            workloads.run(workload, device)
        total += timer([launch for launch in record.launches if launch.config.row == row])
    return total


def gpu_timer(launches: Sequence[Launch]) -> float:
    """Measure the median time of the launches one after the other, with a cold L2 cache before the first."""
    from triton.testing import do_bench

    def start() -> None:
        for launch in launches:
            launch.start()

    return float(do_bench(start, warmup=20, rep=100, return_mode="median")) / 1e3


def write(results: Iterable[TuningResult], capability: str, path: Path = tuning.TUNING_FILE) -> None:
    """Put the better configurations into the table: all of them or, when that fails, none."""
    content = json.loads(path.read_text())
    for result in results:
        if result.improves:
            best = result.best
            content[result.row][capability] = {
                "blocks": best.blocks,
                "warps": best.warps,
                "stages": best.stages,
            }
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m satclip_engine.kernels.tools.tune", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(CANDIDATES)}; default all")
    parser.add_argument("--write", action="store_true", help="put what is faster into tuning.json")
    parser.add_argument("--compile", choices=list(GPUS), help="do not run anything: for this capability")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.rows) - set(CANDIDATES)):
        parser.error(f"no candidates for {unknown[0]}: choose from {', '.join(CANDIDATES)}")
    if interpreted():
        return _fail("kernels are interpreted: unset TRITON_INTERPRET")
    rows = options.rows or list(CANDIDATES)
    if options.compile:
        _show(rows, GPUS[options.compile])
        return 0
    if not torch.cuda.is_available():
        return _fail("no GPU here: tuning measures on the GPU at hand; --compile CAPABILITY only compiles")
    device = torch.device("cuda", torch.cuda.current_device())
    results = list(_tune_rows(rows, device))
    if options.write:
        write(results, capability(device))
    return 0


def _tune_rows(rows: Iterable[str], device: torch.device) -> Iterator[TuningResult]:
    name = capability(device)
    gpu = GPUS.get(name) or GPUS[max(GPUS)]
    for row in rows:
        used = users(row, name, ALL_WORKLOADS)
        if not used:
            continue  # of ragged sizes, on a GPU whose usual row serves them too
        ranking = rank(row, used, CANDIDATES[row], gpu)
        sound = [candidate.config for candidate in ranking if candidate.sound][:MAX_MEASURED]
        result = tune(row, users(row, name) or used, sound, device, gpu_timer)
        print(result, flush=True)
        yield result


def _show(rows: Iterable[str], gpu: Gpu) -> None:
    for row in rows:
        used = users(row, gpu.capability, ALL_WORKLOADS)
        present = config_text(config_for(row, gpu.capability)) if used else "not used"
        print(f"{row} on {gpu.name}, now {present}")
        for candidate in rank(row, used, CANDIDATES[row] if used else (), gpu):
            print(f"  {candidate}", flush=True)


def _fail(message: str) -> int:
    print(f"satclip_engine.kernels.tools.tune: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
