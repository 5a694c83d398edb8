"""Catalogue of the benchmark workloads, as data.

A workload's name follows from its parameters, its tags say when it runs. Every answer is checked before it is
timed; `tolerance` is the largest error of a satclip answer against `reference`, relative to the answer's rms
where `reference` does not say otherwise. Baselines that compute in lower precision state their own tolerance,
see suites/torch_baselines.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, ClassVar

LAYER_WIDTHS = (512, 512, 256)  # outputs of the layers of every released model
IMAGE_FEATURES = 512  # of an image, as a ResNet-18 gives them

FULL, QUICK = "full", "quick"

# Parameters whose keys in result files differ from the names of the fields.
_FILE_KEYS = {"points": "places", "target": "where", "requested": "asked", "baselines": "peers"}


@dataclass(frozen=True)
class BenchmarkWorkload(ABC):
    """Parameters of one measurement."""

    tags: tuple[str, ...] = field(default=(FULL,), kw_only=True)
    group: ClassVar[str]

    @property
    @abstractmethod
    def name(self) -> str:
        """Title in tables and key in result files."""

    @property
    def unit(self) -> str:
        """Things that a rate counts."""
        return "points"

    @property
    def reference(self) -> str:
        """Answer that errors are measured against."""
        return "float64 reference"

    @property
    def tolerance(self) -> float:
        """Largest accepted error of this package's answers."""
        return 1e-5

    def parameters(self) -> dict[str, Any]:
        """Parameters in plain types, by their keys in result files."""
        plain = {
            _FILE_KEYS.get(key, key): list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }
        return {**plain, "tolerance": self.tolerance}


@dataclass(frozen=True)
class CompiledKernelWorkload(BenchmarkWorkload):
    """A compiled kernel alone, in one thread."""

    tags: tuple[str, ...] = field(default=(FULL, QUICK), kw_only=True)
    group: ClassVar[str] = "kernels"


@dataclass(frozen=True)
class GemmWorkload(CompiledKernelWorkload):
    """The machine's own rate: (rows, inputs) × (inputs, outputs) in float32, as the libraries multiply."""

    rows: int
    inputs: int
    outputs: int
    unit = "multiply-adds"
    reference = "product in float64"

    @property
    def name(self) -> str:
        return f"SGEMM {self.rows}×{self.inputs}×{self.outputs}"


@dataclass(frozen=True)
class HarmonicsWorkload(CompiledKernelWorkload):
    """All L² harmonics of degree 0..L−1 at `points` points."""

    degrees: int
    points: int
    tolerance = 1e-11

    @property
    def name(self) -> str:
        return f"harmonics L={self.degrees}"


@dataclass(frozen=True)
class PointsKernelWorkload(CompiledKernelWorkload):
    """The fused points kernel of every instruction set."""

    degrees: int
    points: int
    sizes: tuple[int, ...] = LAYER_WIDTHS

    @property
    def name(self) -> str:
        return f"points kernel L={self.degrees}"


@dataclass(frozen=True)
class GridKernelWorkload(CompiledKernelWorkload):
    """The product-grid kernel of every instruction set, on rows and columns with mirror pairs."""

    degrees: int
    rows: int
    columns: int
    sizes: tuple[int, ...] = LAYER_WIDTHS
    unit = "pixels"

    @property
    def name(self) -> str:
        return f"grid kernel L={self.degrees}, {self.rows}×{self.columns}"


@dataclass(frozen=True)
class RasterKernelWorkload(CompiledKernelWorkload):
    """pack_tiles (quantise, transpose, difference) or halve (2×2 means) of float32 pixels."""

    operation: str
    rows: int
    columns: int
    bands: int
    dtype: str = "int8"
    side: int = 64
    unit = "bytes read"
    tolerance = 1e-6

    @property
    def name(self) -> str:
        return f"{self.operation} {self.dtype}" if self.operation == "pack_tiles" else self.operation

    @property
    def reference(self) -> str:
        return "NumPy, share of differing codes" if self.operation == "pack_tiles" else "NumPy"


@dataclass(frozen=True)
class PointsWorkload(BenchmarkWorkload):
    """Embeddings of `points` random points, area-uniform, as one call."""

    degrees: int
    points: int
    sizes: tuple[int, ...] = LAYER_WIDTHS
    dtype: str = "float32"
    group: ClassVar[str] = "points"

    @property
    def name(self) -> str:
        return f"points L={self.degrees}, N={self.points:,}"


@dataclass(frozen=True)
class GridWorkload(BenchmarkWorkload):
    """A raster of `resolution` degrees between two latitudes, all longitudes, in memory."""

    degrees: int
    resolution: float
    south: float = -90.0
    north: float = 90.0
    sizes: tuple[int, ...] = LAYER_WIDTHS
    dtype: str = "float32"
    group: ClassVar[str] = "grid"
    unit = "pixels"

    @property
    def name(self) -> str:
        is_global = (self.south, self.north) == (-90.0, 90.0)
        extent = "globe" if is_global else f"{self.south:g}° to {self.north:g}°"
        return f"grid L={self.degrees}, {self.resolution:g}° {extent}"


@dataclass(frozen=True)
class LatticeWorkload(BenchmarkWorkload):
    """A fine raster or many points by lattice reconstruction, default weights, into memory that is there.

    target: window, a raster of 0.01° pixels; utm, one of 10 m with sixteen bands of a head; land, scattered
    points. side: pixels along the raster's side, or number of points. requested: tolerance in σ, None for
    the default.
    """

    target: str
    side: int
    dtype: str = "float32"
    requested: float | None = 1e-3
    group: ClassVar[str] = "lattice"
    reference = "float64 reference, in σ, rounding of codes taken off"

    @property
    def points(self) -> int:
        """Number of points or pixels."""
        return self.side if self.target == "land" else self.side**2

    @property
    def unit(self) -> str:
        return "points" if self.target == "land" else "pixels"

    @property
    def tolerance(self) -> float:
        return 1e-4 if self.requested is None else self.requested

    @property
    def name(self) -> str:
        if self.target == "land":
            return f"{self.side:,} points on land, 256 bands {self.dtype}"
        raster = "0.01° window, 256 bands" if self.target == "window" else "UTM tile of 10 m, 16-band head"
        return f"{raster} {self.dtype}, {self.side}×{self.side}"


@dataclass(frozen=True)
class LossWorkload(BenchmarkWorkload):
    """The contrastive loss of `pairs` pairs of embeddings, with its gradients by both and by the scale."""

    pairs: int
    embed: int = 256
    group: ClassVar[str] = "loss"
    unit = "samples"
    reference = "logits in blocks, gradients of some rows in float64"
    tolerance = 3e-5

    @property
    def name(self) -> str:
        return f"loss N={self.pairs:,}, E={self.embed}"

    @property
    def multiply_adds(self) -> float:
        """Multiply-adds of a pair: (N, E) × (E, N) forward, three products backward, which make it again."""
        return 4.0 * self.pairs * self.embed


@dataclass(frozen=True)
class TrainWorkload(BenchmarkWorkload):
    """One training step of the released model: the encoder alone, forward and backward, or all of it."""

    degrees: int
    batch: int
    whole: bool = False  # with the projected image features, the loss and AdamW
    group: ClassVar[str] = "train"
    unit = "samples"
    reference = "gradients in float64"
    tolerance = 1e-4

    @property
    def name(self) -> str:
        step = "training step" if self.whole else "encoder forward and backward"
        return f"{step} L={self.degrees}, batch {self.batch:,}"

    @property
    def multiply_adds(self) -> float:
        """Multiply-adds of a sample: a product a layer forward, two backward but one in the first."""
        widths = (self.degrees**2, *LAYER_WIDTHS)
        products = [a * b for a, b in pairwise(widths)]
        total = 3.0 * sum(products) - products[0]
        if self.whole:
            total += 4.0 * self.batch * LAYER_WIDTHS[-1] + 2.0 * IMAGE_FEATURES * LAYER_WIDTHS[-1]
        return total


@dataclass(frozen=True)
class WriteWorkload(BenchmarkWorkload):
    """A global raster file: the whole command as a process of its own, or the writer alone.

    alone: the pixels are computed already; quantise, compress, assemble. baselines: beside GDAL's COG driver
    through rioxarray, which holds the raster in memory. exact: with every pixel evaluated as well.
    """

    resolution: float
    bands: int = 256
    dtype: str = "int8"
    compress: str = "zstd"
    alone: bool = False
    baselines: bool = False
    exact: bool = False
    group: ClassVar[str] = "write"
    unit = "values"
    reference = "float64 reference, in quantisation steps"
    tolerance = 0.64  # half a step, and the eighth that interpolation may be off

    @property
    def name(self) -> str:
        output = "writer alone" if self.alone else "global raster"
        return f"{output} {self.resolution:g}°, {self.bands} bands {self.dtype} {self.compress}"


# Resolution, south, north of rows without mirror rows, as a window of a finer raster has them.
_UNMIRRORED_ROWS = (0.1, 32.0, 38.4)

WORKLOADS: tuple[BenchmarkWorkload, ...] = (
    GemmWorkload(2048, 1600, 512),
    GemmWorkload(2048, 512, 512),
    *(HarmonicsWorkload(degrees, 4096) for degrees in (10, 40)),
    HarmonicsWorkload(200, 512, tags=(FULL,)),
    *(PointsKernelWorkload(degrees, 4096) for degrees in (10, 40)),
    *(GridKernelWorkload(degrees, 32, 720) for degrees in (10, 40)),
    RasterKernelWorkload("pack_tiles", 64, 1024, 256),
    RasterKernelWorkload("pack_tiles", 64, 1024, 256, dtype="int16", tags=(FULL,)),
    RasterKernelWorkload("halve", 64, 1024, 256),
    *(PointsWorkload(degrees, 100_000) for degrees in (10, 40)),
    *(PointsWorkload(degrees, 10_000, tags=(QUICK,)) for degrees in (10, 40)),
    *(GridWorkload(degrees, 0.5) for degrees in (10, 40, 100, 200)),
    *(GridWorkload(degrees, *_UNMIRRORED_ROWS) for degrees in (10, 40, 100, 200)),
    *(GridWorkload(degrees, 2.0, tags=(QUICK,)) for degrees in (10, 40)),
    LatticeWorkload("window", 2048),
    LatticeWorkload("window", 4096, dtype="int8"),
    LatticeWorkload("utm", 10_980, requested=None),
    LatticeWorkload("land", 10_000_000),
    LatticeWorkload("window", 512, tags=(QUICK,)),
    LatticeWorkload("window", 1024, dtype="int8", tags=(QUICK,)),
    LatticeWorkload("utm", 1024, requested=None, tags=(QUICK,)),
    LatticeWorkload("land", 500_000, tags=(QUICK,)),
    LossWorkload(8192),
    LossWorkload(32_768),
    LossWorkload(131_072),
    LossWorkload(2048, tags=(QUICK,)),
    *(TrainWorkload(degrees, 8192) for degrees in (10, 40)),
    *(TrainWorkload(degrees, 8192, whole=True) for degrees in (10, 40)),
    TrainWorkload(10, 1024, tags=(QUICK,)),
    TrainWorkload(10, 1024, whole=True, tags=(QUICK,)),
    WriteWorkload(0.5, baselines=True),
    WriteWorkload(0.25),
    WriteWorkload(0.1, exact=True),
    WriteWorkload(0.05),
    WriteWorkload(0.25, alone=True),
    WriteWorkload(1.0, baselines=True, tags=(QUICK,)),
    WriteWorkload(1.0, alone=True, tags=(QUICK,)),
)

GROUPS = ("kernels", "points", "grid", "lattice", "loss", "train", "write")

# Baselines that --compare chooses from.
COMPARED = ("torch", "compile", "torch64", "torchgeo", "published", "scipy", "numpy", "rioxarray")


def workloads(group: str, *, quick: bool = False) -> tuple[BenchmarkWorkload, ...]:
    """Workloads of a group, in the order in which they run."""
    tag = QUICK if quick else FULL
    return tuple(workload for workload in WORKLOADS if workload.group == group and tag in workload.tags)
