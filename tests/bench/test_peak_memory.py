"""Peak memory: of processes, and of implementations in processes of their own."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from satclip_engine.bench import catalogue, peak_memory
from satclip_engine.bench.suites import processes


@pytest.mark.skipif(peak_memory.status("VmHWM") is None, reason="no /proc here")
def test_peak_memory_is_the_process_s_own():
    ballast = np.ones(40_000_000)  # 320 MB that a child's resource usage would inherit
    idle = processes.run_process([sys.executable, "-c", "import time; time.sleep(0.2)"])
    busy = processes.run_process([sys.executable, "-c", "import time; x = b'1' * 10**8; time.sleep(0.2)"])
    assert idle.peak_memory < 50_000_000 < 100_000_000 < busy.peak_memory < ballast.nbytes
    assert idle.wall >= 0.2


def test_a_process_that_fails_says_why():
    with pytest.raises(RuntimeError, match="no such thing"):
        processes.run_process([sys.executable, "-c", "raise SystemExit('no such thing')"])


@pytest.mark.skipif(peak_memory.status("VmHWM") is None, reason="no /proc here")
def test_the_memory_of_an_implementation_is_measured_in_its_own_process():
    workload = catalogue.workloads("points", quick=True)[0]
    used = peak_memory.measure_memory("points", workload.name, "satclip", 1, {}, quick=True)
    assert used is not None
    output = 4 * workload.points * workload.sizes[-1]
    assert output <= used["working_memory"] < 4 * output
    assert used["working_memory"] < used["peak_memory"] < 400_000_000
