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
from gpucheck.speed.comparison import (
    BASELINE_TOLERANCE,
    Accelerator,
    Comparison,
    GpuImplementation,
    SpeedWorkload,
)
from satclip_engine.bench.inputs import LOGIT_SCALE, scattered, siren
from satclip_engine.bench.suites.torch_baselines import cross_entropy_loss, dense_encoder
from satclip_engine.contrast import contrastive_loss
from satclip_engine.kernels.tools.workloads import KernelWorkload
from satclip_engine.op import encode

OPS = ("training step", "forward and backward", "forward")
_PLAIN = ("eager", "compile")
_COMPARED_SAMPLES = 256  # whose gradients are compared
_MAX_CPU_SAMPLES = 8192


def run(comparison: Comparison) -> None:
    """Measure all batches; torch.compile on the first, at the end, the whole step first."""
    sizes = comparison.sizes
    batches = [TrainingBatch(*size, sizes.widths, comparison.accelerator) for size in sizes.batches]
    for batch in batches:
        for op in OPS:
            comparison.run(batch.workload(op), batch.implementations(op))
    for op in OPS:
        comparison.run(batches[0].workload(op), [batches[0].entry("torch.compile", op, "compile")])
    last = batches[0].entry("torch.compile, TF32", OPS[0], "compile", tf32=True)
    comparison.run(batches[0].workload(OPS[0]), [last])


@dataclass(frozen=True)
class TrainingBatch:
    """Locations and the embeddings of their images, a network, and the ops on them."""

    degrees: int
    count: int
    widths: tuple[int, ...]
    accelerator: Accelerator

    def workload(self, op: str) -> SpeedWorkload:
        products = [a * b for a, b in pairwise((self.degrees**2, *self.widths))]
        # Two products a layer backwards, but one in the first, which has no gradient by its harmonics.
        multiply_adds = float(sum(products)) if op == "forward" else 3.0 * sum(products) - products[0]
        if op == "training step":
            multiply_adds += 4.0 * self.count * self.widths[-1]
        name = f"{op} L={self.degrees}, batch {self.count:,}"
        return SpeedWorkload(name, "samples", self.count, multiply_adds)

    def implementations(self, op: str) -> Iterator[GpuImplementation]:
        """Ours, PyTorch's in float32 and in TF32, and the CPU's; see run for torch.compile."""
        for precision in VALUES:
            yield self.entry(f"triton {precision}", op, "triton", precision)
        yield self.entry("PyTorch eager", op, "eager")
        yield self.entry("PyTorch eager, TF32", op, "eager", tf32=True)
        if self.count <= _MAX_CPU_SAMPLES:
            yield self.entry("cpu", op, "cpu")

    def entry(
        self, name: str, op: str, backend: str, precision: str = "exact", *, tf32: bool = False
    ) -> GpuImplementation:
        """backend: one of ours, or PyTorch's own: "eager" or "compile"."""
        device = torch.device("cpu") if backend == "cpu" else self.accelerator.device

        def prepare() -> Callable[[], Any]:
            run = self._run(op, backend, precision, device)

            def timed() -> Any:
                with plain.tf32(tf32):
                    return run()

            return timed

        def check(_: Any) -> float:
            # With TF32 the formulas are those without, and its 11 bits are no reason to refuse a baseline.
            return 0.0 if tf32 else self._error(backend, precision, device)

        return self.workload(op).implementation(
            name,
            prepare,
            check,
            BASELINE_TOLERANCE if backend in _PLAIN else GRADIENTS[precision],
            on_gpu=backend != "cpu",
            launches=self._launches(op, precision) if backend == "triton" else (),
        )

    def _launches(self, op: str, precision: str) -> tuple[KernelWorkload, ...]:
        """Launches of an implementation of ours."""
        passes = ("forward",) if op == "forward" else ("forward", "backward")
        launches = [
            KernelWorkload(name, self.count, degrees=self.degrees, sizes=self.widths, precision=precision)
            for name in passes
        ]
        if op == "training step":
            launches.append(KernelWorkload("loss", self.count, self.count, sizes=self.widths[-1:]))
        return tuple(launches)

    def _parameters(self, dtype: torch.dtype, device: torch.device) -> list[Any]:
        layers = siren(self.degrees, self.widths)
        values = (*layers.weights, *layers.biases)
        return [torch.tensor(value, dtype=dtype, device=device, requires_grad=True) for value in values]

    def _inputs(self, count: int, dtype: torch.dtype, device: torch.device) -> tuple[Any, Any]:
        """Locations, and the embeddings of their images."""
        images = np.random.default_rng(1).standard_normal((self.count, self.widths[-1]))[:count]
        lonlat = torch.from_numpy(scattered(self.count)[:count]).to(device)
        return lonlat, torch.nn.functional.normalize(torch.from_numpy(images)).to(device, dtype)

    def _function(
        self, op: str, backend: str, precision: str, dtype: torch.dtype, device: torch.device
    ) -> Callable[..., Any]:
        """(locations, images, parameters) → the embedding, or a scalar to differentiate."""
        layers = len(self.widths)
        if backend in _PLAIN:
            embed, loss = dense_encoder(self.degrees, dtype, device), cross_entropy_loss
        else:

            def embed(*arguments: Any) -> Any:
                return encode(*arguments, backend=backend, precision=precision)

            def loss(*arguments: Any) -> Any:
                return contrastive_loss(*arguments, backend=backend)

        def function(lonlat: Any, images: Any, parameters: list[Any]) -> Any:
            out = embed(lonlat, parameters[:layers], parameters[layers:])
            if op == "forward":
                return out
            if op == "forward and backward":
                return (out * images).mean()
            return loss(images, torch.nn.functional.normalize(out), LOGIT_SCALE)

        return function

    def _run(self, op: str, backend: str, precision: str, device: torch.device) -> Callable[[], Any]:
        function = self._function(op, backend, precision, torch.float32, device)
        if backend == "compile":
            function = self.accelerator.compile(function)
        parameters = self._parameters(torch.float32, device)
        inputs = self._inputs(self.count, torch.float32, device)
        optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=device.type == "cuda")

        def run() -> Any:
            value = function(*inputs, parameters)
            if op != "forward":
                value.backward()
                if op == "training step":
                    optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            return value

        return run

    def _error(self, backend: str, precision: str, device: torch.device) -> float:
        """The largest error of the gradients of some samples, against float64."""
        expected = self._gradients("eager", precision, torch.float64, torch.device("cpu"))
        plain_or_ours = "eager" if backend == "compile" else backend
        gradients = self._gradients(plain_or_ours, precision, torch.float32, device)
        measure = relative_rms if precision == "fast" else relative
        return max(measure(a, b) for a, b in zip(gradients, expected, strict=True))

    def _gradients(self, backend: str, precision: str, dtype: torch.dtype, device: torch.device) -> list[Any]:
        parameters, inputs = self._parameters(dtype, device), self._inputs(_COMPARED_SAMPLES, dtype, device)
        function = self._function("forward and backward", backend, precision, dtype, device)
        return list(torch.autograd.grad(function(*inputs, parameters), parameters))
