"""Compiled kernels. Arrays are NumPy; `out` is written in place; the GIL is released while kernels run."""

from collections.abc import Callable, Sequence

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
    excess: np.ndarray,
    valid: np.ndarray,
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
