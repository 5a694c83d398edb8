"""Every kernel once, on small sizes: the program that the sanitizer watches."""

from __future__ import annotations

import sys

import torch

from satclip_engine import backends
from satclip_engine.bench.inputs import siren
from satclip_engine.device import parse_device
from satclip_engine.kernels.tools import workloads


def main() -> None:
    """Run Triton's kernels and, where they are, those of CUDA C++."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for workload in workloads.SMALL_WORKLOADS:
        print(workload.name, flush=True)
        workloads.run(workload, device)
    if device.type == "cuda":
        torch.cuda.synchronize()
        _cuda()


def _cuda() -> None:
    import numpy as np

    backend, device = next(row for row in backends.TABLE if row.name == "cuda"), parse_device("cuda")
    if backend.missing() or backend.unfit(device):
        return
    for precision in ("exact", "fast"):
        print(f"cuda {precision}", flush=True)
        prepared = backend.prepare(siren(5, (24, 20, 9)), device=device, precision=precision)
        prepared.encode_grid(np.linspace(80, -75, 5), np.linspace(-170, 160, 23))


if __name__ == "__main__":
    sys.exit(main())
