"""Name of the processor, by which measurements and cached rates are told apart."""

from __future__ import annotations

import platform
import re
from pathlib import Path


def processor_name() -> str:
    """Model name of the CPU as Linux has it, or what Python's platform module knows."""
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return " ".join(match[1].split()) if match else platform.processor() or platform.machine()
