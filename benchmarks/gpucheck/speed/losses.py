"""The contrastive loss with its gradients by both operands and by the scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gpucheck.parity import LOSS
from gpucheck.speed import plain
from gpucheck.speed.contest import PEER, Case, Contest, Contestant, Place
from satclip_engine.bench.loss import Batch
from satclip_engine.contrast import contrastive_loss
from satclip_engine.kernels.tools.workloads import KernelWorkload

_WIDTH = 256
_MOST = 8192  # pairs for a CPU
_SCALE = 14.3
_TOLERANCE = 3 * LOSS  # what is right has logits in float32, and errs by 2e-5 itself


def run(contest: Contest) -> None:
    """All sizes."""
    for pairs in contest.sizes.pairs:
        case = Case(f"loss N={pairs:,}, E={_WIDTH}", "samples", pairs, 4.0 * pairs * _WIDTH)
        batch = Batch(pairs, _WIDTH)
        names = ("triton", "PyTorch eager", "torch.compile", *(["cpu"] if pairs <= _MOST else []))
        contest.run(case, [_entry(name, batch, contest.place) for name in names])


def _entry(name: str, batch: Batch, place: Place) -> Contestant:
    """A backend, or PyTorch's own."""
    ours = name in ("triton", "cpu")
    device = torch.device("cpu") if name == "cpu" else place.device

    def make() -> Callable[[], Any]:
        function: Callable[..., Any] = plain.loss
        if ours:
            function = lambda a, b, scale: contrastive_loss(a, b, scale, backend=name)  # noqa: E731
        elif name == "torch.compile":
            function = place.compile(plain.loss)
        given = [torch.from_numpy(rows).to(device).requires_grad_() for rows in (batch.a, batch.b)]
        given.append(torch.tensor(_SCALE, device=device, requires_grad=True))

        def run() -> Any:
            value = function(*given)
            return value.detach(), *torch.autograd.grad(value, given)

        return run

    def check(found: Any) -> float:
        value, da, db, dscale = (tensor.cpu().numpy() for tensor in found)
        return batch.error((float(value), da, db, float(dscale)))

    scenes = (KernelWorkload("loss", batch.pairs, batch.pairs, sizes=(_WIDTH,)),) if name == "triton" else ()
    return Contestant(name, make, check, _TOLERANCE if ours else PEER, on_gpu=name != "cpu", scenes=scenes)
