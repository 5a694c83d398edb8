"""What the public launchers are started on, as data: for compiling ahead of time, for tuning, for tests.

A scene's part says who computes it, its sizes on what. On tensors without memory (device "meta", inside
`launch.recording`) it only tells which kernels would start, in which shape and with how much work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from satclip_engine.kernels.launch import Launch, Recording, recording

SIREN = (512, 512, 256)  # outputs of the layers of every released model


@dataclass(frozen=True)
class Scene:
    """rows, columns: places of a batch and 1, pixels of a raster, or rows of a and of b in a loss."""

    part: str
    rows: int
    columns: int = 1
    degrees: int = 40
    sizes: tuple[int, ...] = SIREN
    precision: str = "exact"
    dropout: float = 0.0
    dtype: str = "float32"

    @property
    def name(self) -> str:
        """forward L=40, 8192, exact."""
        words = [
            f"{self.part}" if self.part == "loss" else f"{self.part} L={self.degrees}",
            f"{self.rows}×{self.columns}" if self.columns > 1 else f"{self.rows}",
            "–".join(map(str, self.sizes)) if self.sizes != SIREN and self.part != "harmonics" else "",
            self.precision if self.part != "harmonics" else "",
            f"dropout {self.dropout:g}" if self.dropout else "",
            self.dtype if self.dtype != "float32" else "",
        ]
        return ", ".join(word for word in words if word)


@dataclass(frozen=True)
class Inputs:
    """Tensors of a scene; random where they have memory, the same every time."""

    scene: Scene
    device: torch.device

    def random(self, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
        """Uniform in ±scale."""
        values = torch.empty(shape, dtype=dtype, device=self.device)
        if self.device.type == "meta":
            return values
        generator = torch.Generator(self.device).manual_seed(len(shape) * 1000 + shape[0])
        return values.uniform_(-scale, scale, generator=generator)

    def lonlat(self) -> Tensor:
        """(N, 2) degrees."""
        return self.random(self.scene.rows, 2, dtype=torch.float64, scale=90.0)

    def weights(self) -> list[Tensor]:
        """As SIREN initialises them, frequencies multiplied in."""
        widths = (self.scene.degrees**2, *self.scene.sizes)
        bounds = [30 / widths[0], *((6 / width) ** 0.5 for width in widths[1:-1])]
        return [
            self.random(outputs, inputs, scale=bound)
            for (inputs, outputs), bound in zip(pairwise(widths), bounds, strict=True)
        ]

    def biases(self) -> list[Tensor]:
        return [self.random(outputs, scale=0.1) for outputs in self.scene.sizes]


def _harmonics(scene: Scene, inputs: Inputs) -> tuple[Tensor, ...]:
    from satclip_engine.kernels.harmonics import harmonics

    return (harmonics(inputs.lonlat(), scene.degrees),)


def _embed(scene: Scene, inputs: Inputs) -> tuple[Tensor, ...]:
    from satclip_engine.kernels import encode

    out, _ = encode.forward(
        inputs.lonlat(), inputs.weights(), inputs.biases(), precision=scene.precision, keep=False
    )
    return (out,)


def _forward(scene: Scene, inputs: Inputs) -> tuple[Tensor, ...]:
    from satclip_engine.kernels import encode

    out, saved = encode.forward(
        inputs.lonlat(),
        inputs.weights(),
        inputs.biases(),
        dropout=scene.dropout,
        seed=7,
        precision=scene.precision,
    )
    assert saved is not None
    return out, saved


def _backward(scene: Scene, inputs: Inputs, deterministic: bool = True) -> tuple[Tensor, ...]:
    from satclip_engine.kernels import encode

    grad = inputs.random(scene.rows, scene.sizes[-1])
    saved = inputs.random(scene.rows, sum(scene.sizes[:-1]))
    d_first, d_weights, d_biases = encode.backward(
        grad,
        inputs.lonlat(),
        inputs.weights(),
        inputs.biases(),
        saved,
        dropout=scene.dropout,
        precision=scene.precision,
        deterministic=deterministic,
    )
    return d_first, *d_weights, *d_biases


def _backward_atomic(scene: Scene, inputs: Inputs) -> tuple[Tensor, ...]:
    return _backward(scene, inputs, deterministic=False)


def _loss(scene: Scene, inputs: Inputs) -> tuple[Tensor, ...]:
    from satclip_engine.kernels import loss

    width, offset = scene.sizes[-1], 0
    a, b = inputs.random(scene.rows, width), inputs.random(scene.columns, width)
    scale, factor = inputs.random(1)[0], inputs.random(1)[0]
    row_lse, column_lse, partner = loss.log_sum_exps(a, b, scale, offset)
    found = loss.gradients(a, b, scale, row_lse, column_lse, offset, factor, scene.precision)
    return row_lse, column_lse, partner, *found


def _grid(scene: Scene, inputs: Inputs) -> tuple[Tensor, ...]:
    from satclip_engine.kernels import grid
    from satclip_engine.kernels.store import Quantise

    network = grid.prepare(scene.degrees, inputs.weights(), inputs.biases(), scene.precision)
    lat = inputs.random(scene.rows, dtype=torch.float64, scale=90.0)
    lon = inputs.random(scene.columns, dtype=torch.float64, scale=180.0)
    if scene.dtype == "float32":
        return (grid.encode_grid(network, lat, lon),)
    steps, offset = inputs.random(scene.sizes[-1]), inputs.random(scene.sizes[-1])
    return (grid.encode_grid(network, lat, lon, quantise=Quantise(scene.dtype, steps, offset)),)


PARTS: dict[str, Callable[[Scene, Inputs], tuple[Tensor, ...]]] = {
    "harmonics": _harmonics,
    "embed": _embed,
    "forward": _forward,
    "backward": _backward,
    "backward, atomic": _backward_atomic,
    "loss": _loss,
    "grid": _grid,
}

PRECISIONS = ("exact", "fast")
TRAINING = ("forward", "backward")

# What users run: the shapes that configurations are chosen by.
SCENES: tuple[Scene, ...] = (
    *(
        Scene(part, 8192, degrees=degrees, precision=precision, dropout=0.5)
        for degrees in (40, 10)
        for precision in PRECISIONS
        for part in TRAINING
    ),
    *(Scene("loss", pairs, pairs, precision=p) for pairs in (8192, 32_768) for p in PRECISIONS),
    *(Scene("embed", 100_000, degrees=degrees, precision="exact") for degrees in (40, 10)),
    Scene("embed", 100_000, precision="fast"),
    *(Scene("grid", 64, 3600, precision=precision) for precision in PRECISIONS),
    Scene("grid", 64, 3600, precision="fast", dtype="int8"),
    Scene("harmonics", 8192),
)

# What else is compiled: sizes that nothing divides, other depths, higher degrees, the other store.
ODD_SCENES: tuple[Scene, ...] = (
    *(
        Scene(part, 1001, degrees=7, sizes=(50, 30, 20, 17), precision=p)
        for p in PRECISIONS
        for part in TRAINING
    ),
    Scene("forward", 1000, degrees=8, sizes=(64, 64, 48, 32), precision="fast"),
    *(Scene(part, 999, degrees=100, dropout=0.5) for part in TRAINING),
    Scene("backward, atomic", 8192, dropout=0.5),
    Scene("backward, atomic", 8192, dropout=0.5, precision="fast"),
    Scene("embed", 77, degrees=1, sizes=(33, 9)),
    *(Scene(part, 1, degrees=1, sizes=(1, 1), dropout=0.5) for part in TRAINING),  # ones become constants
    *(Scene("loss", 777, 2049, sizes=(width,), precision=p) for width in (100, 320) for p in PRECISIONS),
    *(Scene("grid", 33, 101, degrees=100, precision=precision) for precision in PRECISIONS),
    Scene("grid", 5, 7, degrees=3, sizes=(20, 9), dtype="int16"),
    Scene("harmonics", 777, degrees=9),
)

# All parts in sizes that an interpreter runs in a second or so, most of them ragged.
SMALL_SCENES: tuple[Scene, ...] = (
    *(
        Scene(part, 37, degrees=5, sizes=(24, 20, 9), precision=precision, dropout=0.3)
        for precision in PRECISIONS
        for part in (*TRAINING, "backward, atomic")
    ),
    Scene("forward", 19, degrees=3, sizes=(24, 20, 12, 9), precision="fast"),
    *(Scene("embed", 19, degrees=4, sizes=(20, 16, 9), precision=precision) for precision in PRECISIONS),
    *(Scene("loss", 37, 50, sizes=(width,), precision=p) for width in (12, 300) for p in PRECISIONS),
    *(
        Scene("grid", 5, 23, degrees=4, sizes=(20, 16, 9), precision=precision, dtype=dtype)
        for precision in PRECISIONS
        for dtype in ("float32", "int8", "int16")
    ),
    Scene("harmonics", 21, degrees=6),
)


def run(scene: Scene, device: torch.device | str) -> tuple[Tensor, ...]:
    """Everything that the scene's part returns, computed on that device."""
    return PARTS[scene.part](scene, Inputs(scene, torch.device(device)))


def recorded(scene: Scene, capability: str) -> Recording:
    """Which kernels a GPU of that capability would start for a scene, and how."""
    with recording(capability) as record:
        run(scene, "meta")
    return record


def launches(capability: str, scenes: tuple[Scene, ...] = SCENES) -> list[tuple[Scene, Launch]]:
    """All launches of the scenes, in order."""
    return [(scene, launch) for scene in scenes for launch in recorded(scene, capability).launches]


def variables(launch: Launch) -> dict[str, Any]:
    """The constants of a launch that its configuration does not set."""
    constant = {parameter.name for parameter in launch.kernel.params if parameter.is_constexpr}
    return {
        name: value
        for name, value in launch.arguments.items()
        if name in constant and name not in launch.config.blocks
    }
