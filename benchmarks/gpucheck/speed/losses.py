"""The contrastive loss with its gradients by both operands and by the scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gpucheck.parity import LOSS
from gpucheck.speed.comparison import (
    BASELINE_TOLERANCE,
    Accelerator,
    Comparison,
    GpuImplementation,
    SpeedWorkload,
)
from satclip_engine.bench.inputs import LOGIT_SCALE
from satclip_engine.bench.suites.loss import PairBatch
from satclip_engine.bench.suites.torch_baselines import cross_entropy_loss
from satclip_engine.contrast import contrastive_loss
from satclip_engine.kernels.tools.workloads import KernelWorkload

_WIDTH = 256
_MAX_CPU_PAIRS = 8192
_TOLERANCE = 3 * LOSS  # the expected values have logits in float32, and err by 2e-5 themselves


def run(comparison: Comparison) -> None:
    """Measure all sizes."""
    for pairs in comparison.sizes.pairs:
        workload = SpeedWorkload(f"loss N={pairs:,}, E={_WIDTH}", "samples", pairs, 4.0 * pairs * _WIDTH)
        batch = PairBatch(pairs, _WIDTH)
        names = ["triton", "PyTorch eager", "torch.compile", *(["cpu"] if pairs <= _MAX_CPU_PAIRS else [])]
        comparison.run(workload, [_entry(workload, name, batch, comparison.accelerator) for name in names])


def _entry(
    workload: SpeedWorkload, name: str, batch: PairBatch, accelerator: Accelerator
) -> GpuImplementation:
    """A backend, or PyTorch's own."""
    ours = name in ("triton", "cpu")
    device = torch.device("cpu") if name == "cpu" else accelerator.device

    def prepare() -> Callable[[], Any]:
        function: Callable[..., Any] = cross_entropy_loss
        if ours:
            function = lambda a, b, scale: contrastive_loss(a, b, scale, backend=name)  # noqa: E731
        elif name == "torch.compile":
            function = accelerator.compile(cross_entropy_loss)
        inputs = [torch.from_numpy(rows).to(device).requires_grad_() for rows in (batch.a, batch.b)]
        inputs.append(torch.tensor(LOGIT_SCALE, device=device, requires_grad=True))

        def run() -> Any:
            value = function(*inputs)
            return value.detach(), *torch.autograd.grad(value, inputs)

        return run

    def check(answer: Any) -> float:
        value, da, db, dscale = (tensor.cpu().numpy() for tensor in answer)
        return batch.error((float(value), da, db, float(dscale)))

    launch = KernelWorkload("loss", batch.pairs, batch.pairs, sizes=(_WIDTH,))
    return workload.implementation(
        name,
        prepare,
        check,
        _TOLERANCE if ours else BASELINE_TOLERANCE,
        on_gpu=name != "cpu",
        launches=(launch,) if name == "triton" else (),
    )
