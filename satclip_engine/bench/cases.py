"""What is measured, as data: a case's name follows from its parameters, its tags say when it runs.

Every case is checked before it is timed; `tolerance` is the largest error of a satclip answer against
`reference`, relative to the answer's rms where `reference` does not say otherwise. Peers that compute in
lower precision state their own tolerance, see peers.py.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, ClassVar, Protocol

SIREN = (512, 512, 256)  # outputs of the layers of every released model
IMAGE_FEATURES = 512  # of an image, as a ResNet-18 gives them

FULL, QUICK = "full", "quick"


class Case(Protocol):
    """A frozen dataclass with these."""

    @property
    def group(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def unit(self) -> str: ...
    @property
    def reference(self) -> str: ...
    @property
    def tolerance(self) -> float: ...
    @property
    def tags(self) -> tuple[str, ...]: ...


def parameters(case: Any) -> dict[str, Any]:
    """A case's parameters in plain types, for JSON."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(case).items()}


@dataclass(frozen=True)
class GemmCase:
    """The machine's own rate: (rows, inputs) × (inputs, outputs) in float32, as the libraries multiply."""

    rows: int
    inputs: int
    outputs: int
    tolerance: float = 1e-5
    tags: tuple[str, ...] = (FULL, QUICK)
    group: ClassVar[str] = "kernels"
    unit: ClassVar[str] = "multiply-adds"
    reference: ClassVar[str] = "product in float64"

    @property
    def name(self) -> str:
        return f"SGEMM {self.rows}×{self.inputs}×{self.outputs}"


@dataclass(frozen=True)
class HarmonicsCase:
    """All L² harmonics of degree 0..L−1 at `places` places."""

    degrees: int
    places: int
    tolerance: float = 1e-11
    tags: tuple[str, ...] = (FULL, QUICK)
    group: ClassVar[str] = "kernels"
    unit: ClassVar[str] = "places"
    reference: ClassVar[str] = "float64 reference"

    @property
    def name(self) -> str:
        return f"harmonics L={self.degrees}"


@dataclass(frozen=True)
class PointsKernelCase:
    """The fused points kernel of every instruction set, one thread."""

    degrees: int
    places: int
    sizes: tuple[int, ...] = SIREN
    tolerance: float = 1e-5
    tags: tuple[str, ...] = (FULL, QUICK)
    group: ClassVar[str] = "kernels"
    unit: ClassVar[str] = "places"
    reference: ClassVar[str] = "float64 reference"

    @property
    def name(self) -> str:
        return f"points kernel L={self.degrees}"


@dataclass(frozen=True)
class GridKernelCase:
    """The product-grid kernel of every instruction set, one thread, on rows and columns with mirror pairs."""

    degrees: int
    rows: int
    columns: int
    sizes: tuple[int, ...] = SIREN
    tolerance: float = 1e-5
    tags: tuple[str, ...] = (FULL, QUICK)
    group: ClassVar[str] = "kernels"
    unit: ClassVar[str] = "pixels"
    reference: ClassVar[str] = "float64 reference"

    @property
    def name(self) -> str:
        return f"grid kernel L={self.degrees}, {self.rows}×{self.columns}"


@dataclass(frozen=True)
class RasterKernelCase:
    """pack_tiles (quantise, transpose, difference) or halve (2×2 means) of float32 pixels, one thread."""

    operation: str
    rows: int
    columns: int
    bands: int
    dtype: str = "int8"
    side: int = 64
    tolerance: float = 1e-6
    tags: tuple[str, ...] = (FULL, QUICK)
    group: ClassVar[str] = "kernels"
    unit: ClassVar[str] = "bytes read"

    @property
    def name(self) -> str:
        return f"{self.operation} {self.dtype}" if self.operation == "pack_tiles" else self.operation

    @property
    def reference(self) -> str:
        return "NumPy, share of differing codes" if self.operation == "pack_tiles" else "NumPy"


@dataclass(frozen=True)
class PointsCase:
    """Embeddings of `places` random places, area-uniform, as one call."""

    degrees: int
    places: int
    sizes: tuple[int, ...] = SIREN
    dtype: str = "float32"
    tolerance: float = 1e-5
    tags: tuple[str, ...] = (FULL,)
    group: ClassVar[str] = "points"
    unit: ClassVar[str] = "points"
    reference: ClassVar[str] = "float64 reference"

    @property
    def name(self) -> str:
        return f"points L={self.degrees}, N={self.places:,}"


@dataclass(frozen=True)
class GridCase:
    """A raster of `resolution` degrees between two latitudes, all longitudes, in memory."""

    degrees: int
    resolution: float
    south: float = -90.0
    north: float = 90.0
    sizes: tuple[int, ...] = SIREN
    dtype: str = "float32"
    tolerance: float = 1e-5
    tags: tuple[str, ...] = (FULL,)
    group: ClassVar[str] = "grid"
    unit: ClassVar[str] = "pixels"
    reference: ClassVar[str] = "float64 reference"

    @property
    def name(self) -> str:
        whole = (self.south, self.north) == (-90.0, 90.0)
        where = "globe" if whole else f"{self.south:g}° to {self.north:g}°"
        return f"grid L={self.degrees}, {self.resolution:g}° {where}"


@dataclass(frozen=True)
class LatticeCase:
    """A fine raster or many points by lattice reconstruction, default weights, into memory that is there."""

    where: str  # window: of 0.01°; utm: 10 m, sixteen bands of a head; land: scattered points
    side: int  # pixels along a raster's side; how many points
    dtype: str = "float32"
    asked: float | None = 1e-3  # tolerance in σ; None for the default
    tags: tuple[str, ...] = (FULL,)
    group: ClassVar[str] = "lattice"
    reference: ClassVar[str] = "float64 reference, in σ, rounding of codes taken off"

    @property
    def places(self) -> int:
        return self.side if self.where == "land" else self.side**2

    @property
    def unit(self) -> str:
        return "points" if self.where == "land" else "pixels"

    @property
    def tolerance(self) -> float:
        return 1e-4 if self.asked is None else self.asked

    @property
    def name(self) -> str:
        if self.where == "land":
            return f"{self.side:,} points on land, 256 bands {self.dtype}"
        what = "0.01° window, 256 bands" if self.where == "window" else "UTM tile of 10 m, 16-band head"
        return f"{what} {self.dtype}, {self.side}×{self.side}"


@dataclass(frozen=True)
class LossCase:
    """The contrastive loss of `pairs` pairs of embeddings, with its gradients by both and by the scale."""

    pairs: int
    embed: int = 256
    tolerance: float = 3e-5
    tags: tuple[str, ...] = (FULL,)
    group: ClassVar[str] = "loss"
    unit: ClassVar[str] = "samples"
    reference: ClassVar[str] = "logits in blocks, gradients of some rows in float64"

    @property
    def name(self) -> str:
        return f"loss N={self.pairs:,}, E={self.embed}"

    @property
    def multiply_adds(self) -> float:
        """Of one pair: a product of (N, E) and (E, N) forward, three backward, which makes the first anew."""
        return 4.0 * self.pairs * self.embed


@dataclass(frozen=True)
class TrainCase:
    """One training step of the released model: the encoder alone, forward and backward, or all of it."""

    degrees: int
    batch: int
    whole: bool = False  # with the projected image features, the loss and AdamW
    tolerance: float = 1e-4
    tags: tuple[str, ...] = (FULL,)
    group: ClassVar[str] = "train"
    unit: ClassVar[str] = "samples"
    reference: ClassVar[str] = "gradients in float64"

    @property
    def name(self) -> str:
        what = "training step" if self.whole else "encoder forward and backward"
        return f"{what} L={self.degrees}, batch {self.batch:,}"

    @property
    def multiply_adds(self) -> float:
        """Of one sample: a product a layer forward, two backward but one in the first."""
        widths = (self.degrees**2, *SIREN)
        products = [a * b for a, b in pairwise(widths)]
        total = 3.0 * sum(products) - products[0]
        if self.whole:
            total += 4.0 * self.batch * SIREN[-1] + 2.0 * IMAGE_FEATURES * SIREN[-1]
        return total


@dataclass(frozen=True)
class WriteCase:
    """A global raster file: the whole command as a process of its own, or the writer alone."""

    resolution: float
    bands: int = 256
    dtype: str = "int8"
    compress: str = "zstd"
    alone: bool = False  # the pixels are computed already: quantise, compress, assemble
    peers: bool = False  # against GDAL's COG driver through rioxarray, which holds the raster in memory
    exact: bool = False  # with every pixel evaluated as well
    tolerance: float = 0.64  # half a step, and the eighth that interpolation may be off
    tags: tuple[str, ...] = (FULL,)
    group: ClassVar[str] = "write"
    unit: ClassVar[str] = "values"
    reference: ClassVar[str] = "float64 reference, in quantisation steps"

    @property
    def name(self) -> str:
        what = "writer alone" if self.alone else "global raster"
        return f"{what} {self.resolution:g}°, {self.bands} bands {self.dtype} {self.compress}"


# A band of rows without mirror rows: what a window of a finer raster costs.
_BAND = (0.1, 32.0, 38.4)

CASES: tuple[Case, ...] = (
    GemmCase(2048, 1600, 512),
    GemmCase(2048, 512, 512),
    *(HarmonicsCase(degrees, 4096) for degrees in (10, 40)),
    HarmonicsCase(200, 512, tags=(FULL,)),
    *(PointsKernelCase(degrees, 4096) for degrees in (10, 40)),
    *(GridKernelCase(degrees, 32, 720) for degrees in (10, 40)),
    RasterKernelCase("pack_tiles", 64, 1024, 256),
    RasterKernelCase("pack_tiles", 64, 1024, 256, dtype="int16", tags=(FULL,)),
    RasterKernelCase("halve", 64, 1024, 256),
    *(PointsCase(degrees, 100_000) for degrees in (10, 40)),
    *(PointsCase(degrees, 10_000, tags=(QUICK,)) for degrees in (10, 40)),
    *(GridCase(degrees, 0.5) for degrees in (10, 40, 100, 200)),
    *(GridCase(degrees, *_BAND) for degrees in (10, 40, 100, 200)),
    *(GridCase(degrees, 2.0, tags=(QUICK,)) for degrees in (10, 40)),
    LatticeCase("window", 2048),
    LatticeCase("window", 4096, dtype="int8"),
    LatticeCase("utm", 10_980, asked=None),
    LatticeCase("land", 10_000_000),
    LatticeCase("window", 512, tags=(QUICK,)),
    LatticeCase("window", 1024, dtype="int8", tags=(QUICK,)),
    LatticeCase("utm", 1024, asked=None, tags=(QUICK,)),
    LatticeCase("land", 500_000, tags=(QUICK,)),
    LossCase(8192),
    LossCase(32_768),
    LossCase(131_072),
    LossCase(2048, tags=(QUICK,)),
    *(TrainCase(degrees, 8192) for degrees in (10, 40)),
    *(TrainCase(degrees, 8192, whole=True) for degrees in (10, 40)),
    TrainCase(10, 1024, tags=(QUICK,)),
    TrainCase(10, 1024, whole=True, tags=(QUICK,)),
    WriteCase(0.5, peers=True),
    WriteCase(0.25),
    WriteCase(0.1, exact=True),
    WriteCase(0.05),
    WriteCase(0.25, alone=True),
    WriteCase(1.0, peers=True, tags=(QUICK,)),
    WriteCase(1.0, alone=True, tags=(QUICK,)),
)

GROUPS = ("kernels", "points", "grid", "lattice", "loss", "train", "write")

# What --compare chooses from.
COMPARED = ("torch", "compile", "torch64", "torchgeo", "published", "scipy", "numpy", "rioxarray")


def cases(group: str, *, quick: bool = False) -> tuple[Case, ...]:
    """The cases of a group, in the order in which they run."""
    return tuple(case for case in CASES if case.group == group and (QUICK if quick else FULL) in case.tags)
