"""Contestants of the training cases: the fused ops beside the same model in plain PyTorch float32.

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
from satclip_engine.bench.cases import IMAGE_FEATURES, SIREN, TrainCase
from satclip_engine.bench.gemm import torch_threads, yardsticks
from satclip_engine.bench.measure import Contestant, Made
from satclip_engine.bench.peers import harmonics
from satclip_engine.bench.workload import relative_error, scattered, siren

_SCALE = 14.3  # 1 / 0.07, where CLIP's training begins
_CHECKED = 512  # samples whose gradients are compared with float64
_YARDSTICK = 2048  # samples of a plain product

Forward = Callable[[Any, list[Any]], Any]  # places, parameters → embeddings


def train(case: TrainCase, threads: tuple[int, ...], compare: frozenset[str]) -> list[Contestant]:
    """The fused step, eager and compiled PyTorch, and the matrix products alone."""
    step = Step(case)
    entries = []
    for count in sorted(threads, reverse=True):
        most = count == max(threads)
        entries.append(_entry("satclip", case, step, count, fused=True, remember=most, ours=True))
        shapes = list(pairwise((case.degrees**2, *SIREN)))
        share = sum(a * b for a, b in shapes) * _YARDSTICK / case.multiply_adds
        entries += yardsticks(shapes, count, work=share)
        if "torch" in compare and most:
            entries.append(_entry("PyTorch eager", case, step, count, remember=True))
        if "compile" in compare and most:
            entries.append(_entry("torch.compile", case, step, count, compiled=True, remember=True))
    return entries


def _entry(
    name: str,
    case: TrainCase,
    step: Step,
    threads: int,
    *,
    fused: bool = False,
    compiled: bool = False,
    **extra: Any,
) -> Contestant:
    def make(settings: Mapping[str, Any]) -> Made:
        torch = need("torch", extra="torch", why="satclip-bench")
        torch_threads(threads)()
        evaluate = step.fused if fused else step.plain
        # A compiled function is one for each shape: the batch that is checked is smaller.
        timed = torch.compile(evaluate, dynamic=False) if compiled else evaluate
        parameters, optimizer = step.parameters(torch.float32), None
        if case.whole:
            optimizer = torch.optim.AdamW(parameters, lr=1e-6)

        def run() -> float:
            value = timed(*step.inputs(case.batch, torch.float32), parameters)
            value.backward()
            if optimizer is not None:
                optimizer.step()
            for parameter in parameters:
                parameter.grad = None
            return float(value.detach())

        return Made(run, lambda _: step.error(evaluate), case.tolerance, before=torch_threads(threads))

    return Contestant(name, threads, float(case.batch), make, multiply_adds=case.multiply_adds, **extra)


@dataclass(frozen=True, eq=False)
class Step:
    """Places, image features and initial parameters of a case, and the step's loss in two ways."""

    case: TrainCase

    @cached_property
    def places(self) -> np.ndarray:  # (N, 2) degrees
        return scattered(self.case.batch)

    @cached_property
    def images(self) -> np.ndarray:  # (N, F)
        return np.random.default_rng(1).standard_normal((self.case.batch, IMAGE_FEATURES), np.float32)

    def inputs(self, count: int, dtype: Any) -> tuple[Any, Any]:
        """The first `count` places and image features."""
        torch = need("torch", extra="torch", why="satclip-bench")
        return torch.from_numpy(self.places[:count]), torch.from_numpy(self.images[:count]).to(dtype)

    def parameters(self, dtype: Any) -> list[Any]:
        """Weights, then biases, then the projection of image features; folded, as the ops take them."""
        torch = need("torch", extra="torch", why="satclip-bench")
        layers = siren(self.case.degrees, SIREN)
        projection = np.random.default_rng(2).standard_normal((SIREN[-1], IMAGE_FEATURES)) / 20
        values = (*layers.weights, *layers.biases, projection)
        return [torch.tensor(value, dtype=dtype, requires_grad=True) for value in values]

    def fused(self, lonlat: Any, images: Any, parameters: list[Any]) -> Any:
        """The loss by the fused ops."""
        from satclip_engine.contrast import contrastive_loss
        from satclip_engine.op import encode

        layers = len(SIREN)
        embedding = encode(lonlat, parameters[:layers], parameters[layers : 2 * layers])
        return self._value(embedding, images, parameters[-1], contrastive_loss)

    def plain(self, lonlat: Any, images: Any, parameters: list[Any]) -> Any:
        """The loss by PyTorch, in the parameters' dtype."""
        torch = need("torch", extra="torch", why="satclip-bench")
        layers, dtype = len(SIREN), parameters[0].dtype
        hidden = harmonics(lonlat, self.case.degrees, dtype).T
        for weight, bias in zip(parameters[: layers - 1], parameters[layers : 2 * layers - 1], strict=True):
            hidden = torch.sin(torch.nn.functional.linear(hidden, weight, bias))
        embedding = torch.nn.functional.linear(hidden, parameters[layers - 1], parameters[2 * layers - 1])

        def loss(a: Any, b: Any, scale: float) -> Any:
            logits, labels = scale * a @ b.T, torch.arange(len(a))
            entropy = torch.nn.functional.cross_entropy
            return (entropy(logits, labels) + entropy(logits.T, labels)) / 2

        return self._value(embedding, images, parameters[-1], loss)

    def _value(self, embedding: Any, images: Any, projection: Any, loss: Callable[..., Any]) -> Any:
        torch = need("torch", extra="torch", why="satclip-bench")
        if not self.case.whole:  # any function whose gradient is not the same everywhere
            return (embedding * images[:, : SIREN[-1]]).mean()
        normalised = torch.nn.functional.normalize
        return loss(normalised(images @ projection.T), normalised(embedding), _SCALE)

    def error(self, evaluate: Callable[..., Any]) -> float:
        """The largest relative error of the gradients of some samples, against float64."""
        torch = need("torch", extra="torch", why="satclip-bench")
        found = self.parameters(torch.float32)
        evaluate(*self.inputs(_CHECKED, torch.float32), found).backward()
        expected = self.parameters(torch.float64)
        self.plain(*self.inputs(_CHECKED, torch.float64), expected).backward()
        return max(
            relative_error(a.grad.numpy(), b.grad.numpy())
            for a, b in zip(found, expected, strict=True)
            if b.grad is not None
        )
