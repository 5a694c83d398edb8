"""Errors of the Triton encoder's two precisions, layer by layer, at the released size; without a GPU.

    TRITON_INTERPRET=1 python benchmarks/kernel_errors.py [--places 64]      # some minutes

Kernels run in the interpreter, where halves round as on a GPU (and sums are float32 in another order). Errors
are the largest and the root mean square over points, relative to the rms of the layer in float64.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("TRITON_INTERPRET", "1")

import numpy as np
import torch

from satclip_engine.kernels import encode
from satclip_engine.nn import LocationEncoder
from satclip_engine.reference import gradients
from satclip_engine.weights import read_weights

Network = tuple[list[torch.Tensor], list[torch.Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--places", type=int, default=64, help="random points (default 64)")
    count = parser.parse_args().places
    lonlat = _everywhere(count)
    print(f"{count} random points, the poles, the antimeridian and 61° N\n")
    print(
        "| network | precision | | 1st layer | 2nd layer | embedding |\n| --- | --- | --- | --- | --- | --- |"
    )
    for name, network in _networks().items():
        for precision in ("exact", "fast"):
            largest, typical = _errors(network, lonlat, precision)
            print(f"| {name} | {precision} | max | {_row(largest)} |")
            print(f"| | | rms | {_row(typical)} |")


def _everywhere(count: int) -> torch.Tensor:
    rng = np.random.default_rng(7)
    random = np.stack([rng.uniform(-180, 180, count), np.degrees(np.arcsin(rng.uniform(-1, 1, count)))], 1)
    return torch.from_numpy(np.concatenate([random, [(12, 90), (0, -90), (180, 61), (-180, 61), (-180, 0)]]))


def _networks() -> dict[str, Network]:
    return {
        "untrained, L = 40": _untrained(1),
        "untrained, first weight × 20": _untrained(20),
        "default weights": _default(),
    }


def _untrained(gain: float) -> Network:
    layers = LocationEncoder(40, seed=0).nnet.all_layers()
    weights, biases = [l.weight.detach() for l in layers], [l.bias.detach() for l in layers]  # noqa: E741
    return [weights[0] * 30 * gain, *weights[1:]], [biases[0] * 30, *biases[1:]]


def _default() -> Network:
    layers = read_weights("default").folded()
    weights, biases = (
        [torch.tensor(value).float() for value in values] for values in (layers.weights, layers.biases)
    )
    return weights, biases


def _errors(network: Network, lonlat: torch.Tensor, precision: str) -> tuple[list[float], list[float]]:
    """Largest and rms error of every hidden layer's pre-activations and of the embedding."""
    weights, biases = network
    wide = ([tensor.double() for tensor in tensors] for tensors in network)
    exact = _layers(gradients.encode_forward(lonlat, *wide), weights)
    computed = _layers(encode.forward(lonlat, weights, biases, precision=precision), weights)
    pairs = [(a.double() - b, b.norm() / b.numel() ** 0.5) for a, b in zip(computed, exact, strict=True)]
    largest = [float(difference.abs().max() / rms) for difference, rms in pairs]
    return largest, [float(difference.norm() / difference.numel() ** 0.5 / rms) for difference, rms in pairs]


def _layers(
    results: tuple[torch.Tensor, torch.Tensor | None], weights: list[torch.Tensor]
) -> list[torch.Tensor]:
    out, saved = results
    assert saved is not None
    return [*saved.split([len(weight) for weight in weights[:-1]], 1), out]


def _row(values: list[float]) -> str:
    return " | ".join(f"{value:.1e}" for value in values)


if __name__ == "__main__":
    main()
