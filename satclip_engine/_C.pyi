"""Compiled kernels. Arrays are NumPy; `out` is written in place; the GIL is released while kernels run."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

version: str

def instruction_sets() -> list[str]: ...
def harmonics(lonlat: np.ndarray, degrees: int, threads: int = 1, isa: str | None = None) -> np.ndarray: ...

class Network:
    def __init__(
        self,
        degrees: int,
        weights: Sequence[np.ndarray],
        biases: Sequence[np.ndarray],
        isa: str | None = None,
    ) -> None: ...
    @property
    def isa(self) -> str: ...
    def encode(
        self, lonlat: np.ndarray, out: np.ndarray, threads: int, check: Callable[[], object] | None = None
    ) -> None: ...
    def encode_grid(
        self,
        lat: np.ndarray,
        lon: np.ndarray,
        out: np.ndarray,
        threads: int,
        check: Callable[[], object] | None = None,
    ) -> None: ...

train_tile: int
train_units: int

def train_saved(count: int, hidden: Sequence[int], isa: str | None = None) -> int: ...
def train_forward(
    lonlat: np.ndarray,
    weights: Sequence[np.ndarray],
    biases: Sequence[np.ndarray],
    out: np.ndarray,
    saved: np.ndarray,
    dropout: float,
    seed: int,
    threads: int,
    check: Callable[[], object] | None = None,
    isa: str | None = None,
) -> None: ...
def train_backward(
    gradient: np.ndarray,
    lonlat: np.ndarray,
    weights: Sequence[np.ndarray],
    biases: Sequence[np.ndarray],
    saved: np.ndarray,
    dropout: float,
    d_weights: Sequence[np.ndarray],
    d_biases: Sequence[np.ndarray],
    d_first: np.ndarray | None,
    threads: int,
    check: Callable[[], object] | None = None,
    isa: str | None = None,
) -> None: ...
def pack_tiles(
    pixels: np.ndarray,
    tiles: np.ndarray,
    *,
    first_row: int,
    dtype: str,
    predictor: int,
    inverse_scale: np.ndarray | None,
    offset: np.ndarray | None,
    clipped: np.ndarray,
    overshoot: np.ndarray,
    valid: np.ndarray,
    interleaved: bool = False,
    isa: str | None = None,
) -> None: ...
def halve(pixels: np.ndarray, out: np.ndarray, isa: str | None = None) -> None: ...
def loss_forward(
    a: np.ndarray,
    b: np.ndarray,
    scale: float,
    offset: int = 0,
    threads: int = 1,
    check: Callable[[], object] | None = None,
    isa: str | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...
def loss_backward(
    a: np.ndarray,
    b: np.ndarray,
    scale: float,
    row_lse: np.ndarray,
    column_lse: np.ndarray,
    offset: int = 0,
    factor: float = 1.0,
    threads: int = 1,
    check: Callable[[], object] | None = None,
    isa: str | None = None,
) -> tuple[np.ndarray, np.ndarray, float]: ...
def exponentials(x: np.ndarray, isa: str | None = None) -> np.ndarray: ...

Quantise = tuple[np.ndarray, np.ndarray]
"""inverse_scale and offset, float32, a value a band: code = round((value − offset) · inverse_scale)."""

Array = Any
"""A NumPy array, or one that has __dlpack__ or __cuda_array_interface__; the last axis is contiguous."""

def resample(
    lattice: Array,
    rows: np.ndarray,
    columns: np.ndarray,
    out: Array,
    *,
    order: int = 8,
    origin: tuple[float, float] = (0.0, 0.0),
    spacing: tuple[float, float] = (1.0, 1.0),
    quantise: Quantise | None = None,
    threads: int = 1,
    check: Callable[[], object] | None = None,
    isa: str | None = None,
) -> None: ...
def resample_points(
    lattice: Array,
    rows: np.ndarray,
    columns: np.ndarray,
    out: Array,
    *,
    order: int = 8,
    origin: tuple[float, float] = (0.0, 0.0),
    spacing: tuple[float, float] = (1.0, 1.0),
    index: np.ndarray | None = None,
    quantise: Quantise | None = None,
    threads: int = 1,
    check: Callable[[], object] | None = None,
    isa: str | None = None,
) -> None: ...

cuda_build: str | None
"""The architectures that CUDA kernels were compiled for; None when they were left out."""
cuda_missing: str | None
"""A sentence that says what was left out and how to get it; None when nothing was."""

def cuda_devices() -> list[tuple[str, tuple[int, int]]]: ...
def cuda_no_devices() -> str: ...
def cuda_pinned(bytes: int, device: int | None = None) -> np.ndarray: ...

class CudaArray:
    @property
    def shape(self) -> tuple[int, int, int]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def device(self) -> int: ...
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...
    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> object: ...

class CudaNetwork:
    def __init__(
        self,
        degrees: int,
        weights: Sequence[np.ndarray],
        biases: Sequence[np.ndarray],
        precision: str = "exact",
        device: int = 0,
    ) -> None: ...
    @property
    def device(self) -> int: ...
    @property
    def precision(self) -> str: ...
    def encode_grid(
        self,
        lat: np.ndarray,
        lon: np.ndarray,
        out: Array | None = None,
        *,
        stream: int | None = None,
        quantise: Quantise | None = None,
        dtype: str = "float32",
        threads: int = 1,
        check: Callable[[], object] | None = None,
    ) -> Array: ...

def cuda_resample(
    lattice: Array,
    rows: np.ndarray,
    columns: np.ndarray,
    out: Array | None = None,
    *,
    order: int = 8,
    origin: tuple[float, float] = (0.0, 0.0),
    spacing: tuple[float, float] = (1.0, 1.0),
    quantise: Quantise | None = None,
    dtype: str = "float32",
    device: int | None = None,
    stream: int | None = None,
    threads: int = 1,
    check: Callable[[], object] | None = None,
) -> Array: ...

class cuda_emulated:  # a module
    @staticmethod
    def encode_grid(
        degrees: int,
        weights: Sequence[np.ndarray],
        biases: Sequence[np.ndarray],
        precision: str,
        lat: np.ndarray,
        lon: np.ndarray,
        out: Array,
        *,
        quantise: Quantise | None = None,
        backwards: bool = False,
        piece_bytes: int = ...,
    ) -> None: ...
    @staticmethod
    def resample(
        lattice: Array,
        rows: np.ndarray,
        columns: np.ndarray,
        out: Array,
        *,
        order: int = 8,
        origin: tuple[float, float] = (0.0, 0.0),
        spacing: tuple[float, float] = (1.0, 1.0),
        quantise: Quantise | None = None,
        backwards: bool = False,
        piece_bytes: int = ...,
    ) -> None: ...
