"""Finding the fastest configuration of kernels on the GPU at hand.

    python -m satclip_engine.kernels.tune                  # all rows of tuning.json: what would change
    python -m satclip_engine.kernels.tune dense --write    # one row, written to tuning.json
    python -m satclip_engine.kernels.tune --compile sm_90  # no GPU: registers, spills and estimates only

Candidates (candidates.py) are compiled, those that spill or do not fit are dropped, and the rest, best
estimate first, run in the scenes that use the row. A candidate whose results differ from those of the present
configuration by more than rounding is wrong and dropped. Compared is the time of the row's own launches.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from satclip_engine.kernels import scenes, tuning
from satclip_engine.kernels.candidates import CANDIDATES
from satclip_engine.kernels.compiled.binary import Binary, compiled, request
from satclip_engine.kernels.compiled.estimate import estimated, programs_at_once, roofline, tensor_share
from satclip_engine.kernels.compiled.gpus import GPUS, Gpu
from satclip_engine.kernels.launch import Launch, capability, interpreted, recording
from satclip_engine.kernels.scenes import ODD_SCENES, SCENES, Scene
from satclip_engine.kernels.tuning import Config, config_for, trying

EVERY = (*SCENES, *ODD_SCENES)  # where a candidate must not spill; measured are SCENES
MEASURED = 12  # candidates of a row that run, those with the best estimates
GAIN = 0.97  # of the present time: what is not 3 % faster is not worth other bits
# Of the results' rms, between two configurations: other orders of summation; "fast" rounds to bfloat16.
TOLERANCE = {"exact": 1e-4, "fast": 5e-2}

Timer = Callable[[Sequence[Launch]], float]  # launches → seconds of all of them


@dataclass(frozen=True)
class Compiled:
    """A candidate with what the compiler makes of it, the worst of all its uses."""

    config: Config
    registers: int = 0
    spills: int = 0
    shared: int = 0
    at_once: int = 0
    share: float = 0.0  # of the tensor cores' peak, the least of all launches
    estimate: float = math.inf  # seconds of all its launches in the scenes
    error: str = ""

    @property
    def sound(self) -> bool:
        return not self.error and not self.spills and self.at_once > 0

    def __str__(self) -> str:
        figures = f"{self.registers} registers, {self.spills} spills, {self.shared / 1024:.0f} KiB"
        return f"{words(self.config)}: " + (
            self.error
            or f"{figures}, {self.at_once} at once, tensor {self.share:.0%}, {self.estimate * 1e6:.0f} µs"
        )


@dataclass(frozen=True)
class Found:
    """The result of tuning a row: seconds of the present configuration and of the best one."""

    row: str
    present: Config
    best: Config
    before: float
    after: float

    @property
    def improves(self) -> bool:
        return self.after < GAIN * self.before

    def __str__(self) -> str:
        gain = f"{self.before * 1e6:.1f} → {self.after * 1e6:.1f} µs"
        return f"{self.row}: {words(self.best)}, {gain}" if self.improves else f"{self.row}: stays, {gain}"


def words(config: Config) -> str:
    """BLOCK_N=128 BLOCK_K=32 warps=8 stages=3."""
    return " ".join(f"{name}={value}" for name, value in config.blocks.items()) + (
        f" warps={config.warps} stages={config.stages}"
    )


def users(row: str, capability: str, chosen: Sequence[Scene] = SCENES) -> list[Scene]:
    """The scenes in which a row of the table is used."""
    return [scene for scene in chosen if row in scenes.recorded(scene, capability).rows]


def judged(row: str, used: Sequence[Scene], configs: Iterable[Config], gpu: Gpu) -> list[Compiled]:
    """Candidates, the best first, as far as that can be known without running them."""
    uses = [(config, _uses(row, config, used, gpu)) for config in configs]
    asked = {id(use): request(use, gpu.capability) for _, part in uses for use in part}
    binaries = compiled(asked.values())
    found = [
        _judge(config, [(use, binaries[asked[id(use)].key]) for use in part], gpu) for config, part in uses
    ]
    return sorted(found, key=lambda each: (not each.sound, each.estimate))


def _uses(row: str, config: Config, used: Sequence[Scene], gpu: Gpu) -> list[Launch]:
    with trying(row, config):
        launches = [use for scene in used for use in scenes.recorded(scene, gpu.capability).launches]
    return [use for use in launches if use.config.row == row]


def _judge(config: Config, uses: Sequence[tuple[Launch, Binary | Exception]], gpu: Gpu) -> Compiled:
    for _, binary in uses:
        if isinstance(binary, Exception):
            return Compiled(config, error=f"{type(binary).__name__}: {binary}".splitlines()[0][:100])
    sound = [(use, binary) for use, binary in uses if isinstance(binary, Binary)]
    shares = [tensor_share(binary.program.main_loop, gpu) for _, binary in sound]
    times = [
        estimated(roofline(use.work, gpu), share, math.prod(use.grid), gpu)
        for (use, _), share in zip(sound, shares, strict=True)
    ]
    return Compiled(
        config,
        registers=max(binary.registers for _, binary in sound),
        spills=max(binary.spills + binary.stack for _, binary in sound),
        shared=max(binary.shared for _, binary in sound),
        at_once=min(programs_at_once(binary, config.warps, gpu) for _, binary in sound),
        share=min(shares),
        estimate=sum(times),
    )


def tune(
    row: str, used: Sequence[Scene], configs: Iterable[Config], device: torch.device, timer: Timer
) -> Found:
    """Measure the configurations of a row in the scenes that use it; those that give wrong answers lose."""
    present = config_for(row, capability(device))
    expected = [_outputs(scene, device) for scene in used]
    before = _seconds(row, present, used, device, timer)
    best, after = present, before
    for config in configs:
        try:
            if not _right(row, config, used, expected, device):
                continue
            seconds = _seconds(row, config, used, device, timer)
        except (
            RuntimeError,
            ValueError,
        ) as error:  # it does not start: too much memory, a shape it cannot take
            print(f"{row}: {words(config)}: {error}", file=sys.stderr)
            continue
        if seconds < after:
            best, after = config, seconds
    return Found(row, present, best, before, after)


def _outputs(scene: Scene, device: torch.device) -> list[Any]:
    return [each.double() for each in scenes.run(scene, device)]


def _right(
    row: str, config: Config, used: Sequence[Scene], expected: Sequence[Sequence[Any]], device: torch.device
) -> bool:
    with trying(row, config):
        found = [_outputs(scene, device) for scene in used]
    return all(
        _near(a, b, TOLERANCE[scene.precision])
        for scene, some, others in zip(used, found, expected, strict=True)
        for a, b in zip(some, others, strict=True)
    )


def _near(a: Any, b: Any, tolerance: float) -> bool:
    """Whether the rms of the difference is below that share of the rms; NaN is nowhere near."""
    error, size = (a - b).square().mean().sqrt(), b.square().mean().sqrt()
    return bool(error <= tolerance * size)


def _seconds(row: str, config: Config, used: Sequence[Scene], device: torch.device, timer: Timer) -> float:
    """Of the row's own launches, with what the others computed as their operands."""
    total = 0.0
    for scene in used:
        with trying(row, config), recording(capability(device), starts=True) as record:
            scenes.run(scene, device)
        total += timer([each for each in record.launches if each.config.row == row])
    return total


def gpu_timer(launches: Sequence[Launch]) -> float:
    """Median time of the launches one after the other, with a cold L2 cache before the first."""
    from triton.testing import do_bench

    def start() -> None:
        for each in launches:
            each.start()

    return float(do_bench(start, warmup=20, rep=100, return_mode="median")) / 1e3


def write(found: Iterable[Found], capability: str, path: Path = tuning.TABLE) -> None:
    """Put the better configurations into the table: all of them or, when that fails, none."""
    content = json.loads(path.read_text())
    for each in found:
        if each.improves:
            best = each.best
            content[each.row][capability] = {
                "blocks": best.blocks,
                "warps": best.warps,
                "stages": best.stages,
            }
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(json.dumps(content, indent=1) + "\n")
    os.chmod(file.name, path.stat().st_mode)
    os.replace(file.name, path)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m satclip_engine.kernels.tune", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(CANDIDATES)}; default all")
    parser.add_argument("--write", action="store_true", help="put what is faster into tuning.json")
    parser.add_argument("--compile", choices=list(GPUS), help="do not run anything: for this capability")
    given = parser.parse_args(arguments)
    if unknown := sorted(set(given.rows) - set(CANDIDATES)):
        parser.error(f"no candidates for {unknown[0]}: choose from {', '.join(CANDIDATES)}")
    if interpreted():
        return _fail("kernels are interpreted: unset TRITON_INTERPRET")
    rows = given.rows or list(CANDIDATES)
    if given.compile:
        _show(rows, GPUS[given.compile])
        return 0
    if not torch.cuda.is_available():
        return _fail("no GPU here: tuning measures on the GPU at hand; --compile CAPABILITY only compiles")
    found = list(_tuned(rows, torch.device("cuda", torch.cuda.current_device())))
    if given.write:
        write(found, capability(torch.device("cuda", torch.cuda.current_device())))
    return 0


def _tuned(rows: Iterable[str], device: torch.device) -> Iterable[Found]:
    name = capability(device)
    gpu = GPUS.get(name) or GPUS[max(GPUS)]
    for row in rows:
        every = users(row, name, EVERY)
        if not every:
            continue  # of ragged sizes, on a GPU whose usual row serves them too
        sound = [each.config for each in judged(row, every, CANDIDATES[row], gpu) if each.sound][:MEASURED]
        found = tune(row, users(row, name) or every, sound, device, gpu_timer)
        print(found, flush=True)
        yield found


def _show(rows: Iterable[str], gpu: Gpu) -> None:
    for row in rows:
        used = users(row, gpu.capability, EVERY)
        now = words(config_for(row, gpu.capability)) if used else "not used"
        print(f"{row} on {gpu.name}, now {now}")
        for each in judged(row, used, CANDIDATES[row] if used else (), gpu):
            print(f"  {each}", flush=True)


def _fail(message: str) -> int:
    print(f"satclip_engine.kernels.tune: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
