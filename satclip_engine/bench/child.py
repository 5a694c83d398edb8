"""Child process that runs one implementation once and measures its memory: started by peak_memory.py.

python -m satclip_engine.bench.child         request as JSON on stdin, answer as JSON on stdout
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from satclip_engine.bench.peak_memory import status
from satclip_engine.bench.run import find_implementation


def answer(request: Mapping[str, Any]) -> dict[str, int] | None:
    """Run the implementation that the request names once; returns the bytes it took."""
    prepared = find_implementation(
        request["group"],
        request["workload"],
        request["implementation"],
        request["threads"],
        quick=request["quick"],
    ).prepare(request["settings"])
    prepared.before()
    before, peak = status("VmRSS"), status("VmHWM")
    if before is None or peak is None:
        return None
    _reset_high_water()
    result = prepared.run()
    after = status("VmHWM") or 0
    del result
    return {"peak_memory": max(peak, after), "working_memory": max(0, after - before)}


def _reset_high_water() -> None:
    with suppress(OSError):  # else the memory that preparing took counts as well
        Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    print(json.dumps(answer(json.load(sys.stdin))))
