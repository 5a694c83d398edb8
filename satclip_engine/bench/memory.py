"""Peak memory of one contestant, measured in a process of its own.

    python -m satclip_engine.bench.memory        request as JSON on stdin, answer as JSON on stdout

The resource usage that a parent gets is of no use here: on Linux it counts what the parent itself held when
it forked. The high-water mark in /proc belongs to the process's own memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


def measured(
    group: str, case: str, contestant: str, threads: int, settings: Mapping[str, Any], *, quick: bool
) -> dict[str, int] | None:
    """Bytes: `peak_memory` of the process, `working_memory` that the call added, its result included.

    None where that cannot be measured.
    """
    request = {
        "group": group,
        "case": case,
        "contestant": contestant,
        "threads": threads,
        "settings": dict(settings),
        "quick": quick,
    }
    done = subprocess.run(
        [sys.executable, "-m", "satclip_engine.bench.memory"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
    )
    return json.loads(done.stdout) if done.returncode == 0 and done.stdout else None


def answer(request: Mapping[str, Any]) -> dict[str, int] | None:
    """Run the contestant that the request names once and say what it took."""
    from satclip_engine.bench.run import find

    made = find(
        request["group"],
        request["case"],
        request["contestant"],
        request["threads"],
        quick=request["quick"],
    ).make(request["settings"])
    made.before()
    before = status("VmRSS")
    peak = status("VmHWM")
    if before is None or peak is None:
        return None
    _reset_high_water()
    held = made.run()
    after = status("VmHWM") or 0
    del held
    return {"peak_memory": max(peak, after), "working_memory": max(0, after - before)}


def status(key: str, pid: int | str = "self") -> int | None:
    """Bytes of a line of /proc/PID/status: VmRSS, now resident, or VmHWM, the most so far; None elsewhere."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _reset_high_water() -> None:
    with suppress(OSError):  # else what making the contestant took counts as well
        Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    print(json.dumps(answer(json.load(sys.stdin))))
