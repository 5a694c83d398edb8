"""Peak memory of one implementation, measured in a process of its own (child.py).

The resource usage that a parent gets is of no use here: on Linux it counts what the parent itself held when
it forked. The high-water mark in /proc belongs to the process's own memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def measure_memory(
    group: str, workload: str, implementation: str, threads: int, settings: Mapping[str, Any], *, quick: bool
) -> dict[str, int] | None:
    """Bytes: `peak_memory` of the process, `working_memory` that the call added, its result included.

    None where that cannot be measured.
    """
    request = {
        "group": group,
        "workload": workload,
        "implementation": implementation,
        "threads": threads,
        "settings": dict(settings),
        "quick": quick,
    }
    process = subprocess.run(
        [sys.executable, "-m", "satclip_engine.bench.child"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
    )
    return json.loads(process.stdout) if process.returncode == 0 and process.stdout else None


def status(key: str, pid: int | str = "self") -> int | None:
    """Bytes of a line of /proc/PID/status: VmRSS, now resident, or VmHWM, the most so far; None elsewhere."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
