"""Implementations of the training workloads: the fused ops beside the same model in plain PyTorch float32.

All of them start at the same parameters, see the same batch and return the gradients, which are compared with
those of the float64 reference; a whole step then updates by AdamW, which is timed and not compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from satclip_engine._optional import need
from satclip_engine.bench.catalogue import IMAGE_FEATURES, LAYER_WIDTHS, TrainWorkload
from satclip_engine.bench.inputs import LOGIT_SCALE, multiply_adds, relative_error, scattered, siren
from satclip_engine.bench.measure import Implementation, PreparedRun
from satclip_engine.bench.suites.gemm import gemm_rooflines, torch_threads
from satclip_engine.bench.suites.torch_baselines import cross_entropy_loss, dense_encoder

_COMPARED_SAMPLES = 512  # whose gradients are compared with float64
_ROOFLINE_SAMPLES = 2048  # of a plain product


def train(workload: TrainWorkload, threads: tuple[int, ...], compare: frozenset[str]) -> list[Implementation]:
    """The fused step, eager and compiled PyTorch, and the matrix products alone."""
    step = TrainingStep(workload)
    entries = []
    for count in sorted(threads, reverse=True):
        all_threads = count == max(threads)
        entries.append(_entry("satclip", step, count, fused=True, measure_memory=all_threads, ours=True))
        entries += _rooflines(workload, count)
        if "torch" in compare and all_threads:
            entries.append(_entry("PyTorch eager", step, count, measure_memory=True))
        if "compile" in compare and all_threads:
            entries.append(_entry("torch.compile", step, count, compiled=True, measure_memory=True))
    return entries


def _rooflines(workload: TrainWorkload, threads: int) -> list[Implementation]:
    shapes = list(pairwise((workload.degrees**2, *LAYER_WIDTHS)))
    products = multiply_adds(workload.degrees, LAYER_WIDTHS) * _ROOFLINE_SAMPLES
    return gemm_rooflines(shapes, threads, rows=_ROOFLINE_SAMPLES, work=products / workload.multiply_adds)


def _entry(
    name: str,
    step: TrainingStep,
    threads: int,
    *,
    fused: bool = False,
    compiled: bool = False,
    **options: Any,
) -> Implementation:
    workload = step.workload

    def prepare(settings: Mapping[str, Any]) -> PreparedRun:
        torch = need("torch", extra="torch", why="satclip-bench")
        torch_threads(threads)()
        evaluate = step.fused if fused else step.plain
        # A compiled function is one for each shape: the batch that is checked is smaller.
        timed = torch.compile(evaluate, dynamic=False) if compiled else evaluate
        parameters, optimizer = step.parameters(torch.float32), None
        if workload.whole:
            optimizer = torch.optim.AdamW(parameters, lr=1e-6)

        def run() -> float:
            value = timed(*step.inputs(workload.batch, torch.float32), parameters)
            value.backward()
            if optimizer is not None:
                optimizer.step()
            for parameter in parameters:
                parameter.grad = None
            return float(value.detach())

        if compiled:
            run()  # compiles, which is no step's time
        return PreparedRun(
            run, lambda _: step.error(evaluate), workload.tolerance, before=torch_threads(threads)
        )

    return Implementation(
        name, threads, float(workload.batch), prepare, multiply_adds=workload.multiply_adds, **options
    )


@dataclass(frozen=True, eq=False)
class TrainingStep:
    """Locations, image features and initial parameters of a workload, and the step's loss in two ways."""

    workload: TrainWorkload

    @cached_property
    def lonlat(self) -> np.ndarray:  # (N, 2) degrees
        return scattered(self.workload.batch)

    @cached_property
    def images(self) -> np.ndarray:  # (N, F)
        return np.random.default_rng(1).standard_normal((self.workload.batch, IMAGE_FEATURES), np.float32)

    def inputs(self, count: int, dtype: Any) -> tuple[Any, Any]:
        """The first `count` locations and image features."""
        torch = need("torch", extra="torch", why="satclip-bench")
        return torch.from_numpy(self.lonlat[:count]), torch.from_numpy(self.images[:count]).to(dtype)

    def parameters(self, dtype: Any) -> list[Any]:
        """Weights, then biases, then the projection of image features; folded, as the ops take them."""
        torch = need("torch", extra="torch", why="satclip-bench")
        layers = siren(self.workload.degrees, LAYER_WIDTHS)
        projection = np.random.default_rng(2).standard_normal((LAYER_WIDTHS[-1], IMAGE_FEATURES)) / 20
        values = (*layers.weights, *layers.biases, projection)
        return [torch.tensor(value, dtype=dtype, requires_grad=True) for value in values]

    def fused(self, lonlat: Any, images: Any, parameters: list[Any]) -> Any:
        """The loss by the fused ops."""
        from satclip_engine.contrast import contrastive_loss
        from satclip_engine.op import encode

        layers = len(LAYER_WIDTHS)
        embedding = encode(lonlat, parameters[:layers], parameters[layers : 2 * layers])
        return self._value(embedding, images, parameters[-1], contrastive_loss)

    def plain(self, lonlat: Any, images: Any, parameters: list[Any]) -> Any:
        """The loss by PyTorch, in the parameters' dtype."""
        layers = len(LAYER_WIDTHS)
        encode = dense_encoder(self.workload.degrees, parameters[0].dtype, lonlat.device)
        embedding = encode(lonlat, parameters[:layers], parameters[layers : 2 * layers])
        return self._value(embedding, images, parameters[-1], cross_entropy_loss)

    def _value(self, embedding: Any, images: Any, projection: Any, loss: Callable[..., Any]) -> Any:
        torch = need("torch", extra="torch", why="satclip-bench")
        if not self.workload.whole:  # any function whose gradient is not the same everywhere
            return (embedding * images[:, : LAYER_WIDTHS[-1]]).mean()
        normalised = torch.nn.functional.normalize
        return loss(normalised(images @ projection.T), normalised(embedding), LOGIT_SCALE)

    def error(self, evaluate: Callable[..., Any]) -> float:
        """The largest relative error of the gradients of some samples, against float64."""
        torch = need("torch", extra="torch", why="satclip-bench")
        parameters = self.parameters(torch.float32)
        evaluate(*self.inputs(_COMPARED_SAMPLES, torch.float32), parameters).backward()
        expected = self.parameters(torch.float64)
        self.plain(*self.inputs(_COMPARED_SAMPLES, torch.float64), expected).backward()
        return max(
            relative_error(a.grad.numpy(), b.grad.numpy())
            for a, b in zip(parameters, expected, strict=True)
            if b.grad is not None
        )
