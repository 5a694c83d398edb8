"""The encoder forward, forward and backward, and a whole step with the loss and AdamW."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from gpucheck.parity import GRADIENTS, VALUES, relative, relative_rms
from gpucheck.speed import plain
from gpucheck.speed.contest import PEER, Case, Contest, Contestant, Place
from satclip_engine.bench.workload import scattered, siren
from satclip_engine.contrast import contrastive_loss
from satclip_engine.kernels.tools.workloads import KernelWorkload
from satclip_engine.op import encode

WHATS = ("training step", "forward and backward", "forward")
_PLAIN = ("eager", "compile")
_COMPARED = 256  # samples whose gradients are compared
_MOST = 8192  # samples for a CPU
_SCALE = 14.3  # 1 / 0.07, where CLIP's training begins


def run(contest: Contest) -> None:
    """All batches; torch.compile on the first, at the end, the whole step first."""
    batches = [Batch(*size, contest.sizes.widths, contest.place) for size in contest.sizes.batches]
    for batch in batches:
        for what in WHATS:
            contest.run(batch.case(what), batch.contestants(what))
    for what in WHATS:
        contest.run(batches[0].case(what), [batches[0].entry("torch.compile", what, "compile")])
    last = batches[0].entry("torch.compile, TF32", WHATS[0], "compile", tf32=True)
    contest.run(batches[0].case(WHATS[0]), [last])


@dataclass(frozen=True)
class Batch:
    """Places and the embeddings of their images, a network, and what is done with them."""

    degrees: int
    count: int
    widths: tuple[int, ...]
    place: Place

    def case(self, what: str) -> Case:
        products = [a * b for a, b in pairwise((self.degrees**2, *self.widths))]
        # Two products a layer backwards, but one in the first, which has no gradient by its harmonics.
        each = float(sum(products)) if what == "forward" else 3.0 * sum(products) - products[0]
        if what == "training step":
            each += 4.0 * self.count * self.widths[-1]
        return Case(f"{what} L={self.degrees}, batch {self.count:,}", "samples", self.count, each)

    def contestants(self, what: str) -> Iterator[Contestant]:
        """Ours, PyTorch's in float32 and in TF32, and the CPU's; see run for torch.compile."""
        for precision in VALUES:
            yield self.entry(f"triton {precision}", what, "triton", precision)
        yield self.entry("PyTorch eager", what, "eager")
        yield self.entry("PyTorch eager, TF32", what, "eager", tf32=True)
        if self.count <= _MOST:
            yield self.entry("cpu", what, "cpu")

    def entry(
        self, name: str, what: str, how: str, precision: str = "exact", *, tf32: bool = False
    ) -> Contestant:
        """how: a backend, or PyTorch's own: "eager" or "compile"."""
        device = torch.device("cpu") if how == "cpu" else self.place.device

        def make() -> Callable[[], Any]:
            run = self._run(what, how, precision, device)

            def timed() -> Any:
                with plain.tf32(tf32):
                    return run()

            return timed

        def check(_: Any) -> float:
            # With TF32 the formulas are those without, and its 11 bits are no reason to refuse a rival.
            return 0.0 if tf32 else self._error(how, precision, device)

        return Contestant(
            name,
            make,
            check,
            PEER if how in _PLAIN else GRADIENTS[precision],
            on_gpu=how != "cpu",
            scenes=self._scenes(what, precision) if how == "triton" else (),
        )

    def _scenes(self, what: str, precision: str) -> tuple[KernelWorkload, ...]:
        """What a contestant of ours starts."""
        parts = ("forward",) if what == "forward" else ("forward", "backward")
        found = [
            KernelWorkload(part, self.count, degrees=self.degrees, sizes=self.widths, precision=precision)
            for part in parts
        ]
        if what == "training step":
            found.append(KernelWorkload("loss", self.count, self.count, sizes=self.widths[-1:]))
        return tuple(found)

    def _parameters(self, dtype: torch.dtype, device: torch.device) -> list[Any]:
        layers = siren(self.degrees, self.widths)
        values = (*layers.weights, *layers.biases)
        return [torch.tensor(value, dtype=dtype, device=device, requires_grad=True) for value in values]

    def _inputs(self, count: int, dtype: torch.dtype, device: torch.device) -> tuple[Any, Any]:
        """Places, and the embeddings of their images."""
        images = np.random.default_rng(1).standard_normal((self.count, self.widths[-1]))[:count]
        lonlat = torch.from_numpy(scattered(self.count)[:count]).to(device)
        return lonlat, torch.nn.functional.normalize(torch.from_numpy(images)).to(device, dtype)

    def _value(
        self, what: str, how: str, precision: str, dtype: torch.dtype, device: torch.device
    ) -> Callable[..., Any]:
        """(places, images, parameters) → the embedding, or a scalar to differentiate."""
        layers = len(self.widths)
        if how in _PLAIN:
            embed, loss = plain.encoder(self.degrees, dtype, device), plain.loss
        else:

            def embed(*given: Any) -> Any:
                return encode(*given, backend=how, precision=precision)

            def loss(*given: Any) -> Any:
                return contrastive_loss(*given, backend=how)

        def value(lonlat: Any, images: Any, parameters: list[Any]) -> Any:
            out = embed(lonlat, parameters[:layers], parameters[layers:])
            if what == "forward":
                return out
            if what == "forward and backward":
                return (out * images).mean()
            return loss(images, torch.nn.functional.normalize(out), _SCALE)

        return value

    def _run(self, what: str, how: str, precision: str, device: torch.device) -> Callable[[], Any]:
        value = self._value(what, how, precision, torch.float32, device)
        if how == "compile":
            value = self.place.compile(value)
        parameters = self._parameters(torch.float32, device)
        inputs = self._inputs(self.count, torch.float32, device)
        optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=device.type == "cuda")

        def run() -> Any:
            found = value(*inputs, parameters)
            if what != "forward":
                found.backward()
                if what == "training step":
                    optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            return found

        return run

    def _error(self, how: str, precision: str, device: torch.device) -> float:
        """The largest error of the gradients of some samples, against float64."""
        right = self._gradients("eager", precision, torch.float64, torch.device("cpu"))
        found = self._gradients("eager" if how == "compile" else how, precision, torch.float32, device)
        measured = relative_rms if precision == "fast" else relative
        return max(measured(one, other) for one, other in zip(found, right, strict=True))

    def _gradients(self, how: str, precision: str, dtype: torch.dtype, device: torch.device) -> list[Any]:
        parameters, inputs = self._parameters(dtype, device), self._inputs(_COMPARED, dtype, device)
        value = self._value("forward and backward", how, precision, dtype, device)
        return list(torch.autograd.grad(value(*inputs, parameters), parameters))
