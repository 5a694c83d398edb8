"""Candidate configurations of kernels for tune.py, as data: every combination of a row's values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from satclip_engine.kernels.tuning import Config


@dataclass(frozen=True)
class Candidates:
    """Values to try of each constant of a row, of warps and of stages."""

    blocks: Mapping[str, tuple[int, ...]]
    warps: tuple[int, ...] = (4, 8)
    stages: tuple[int, ...] = (2, 3)

    def __iter__(self) -> Iterator[Config]:
        for values in product(*self.blocks.values(), self.warps, self.stages):
            *blocks, warps, stages = values
            yield Config(dict(zip(self.blocks, blocks, strict=True)), warps, stages)


_DENSE = Candidates({"BLOCK_N": (64, 128), "BLOCK_M": (64, 128, 256), "BLOCK_K": (32, 64)}, stages=(2, 3, 4))
_WEIGHT_GRADIENT = Candidates(
    {"BLOCK_N": (16, 32, 64), "BLOCK_M": (64, 128), "BLOCK_K": (64, 128)}, stages=(2, 3, 4)
)
_LAST_LAYERS = Candidates(
    {"BLOCK_N": (32, 64, 128), "BLOCK_M": (64, 128), "BLOCK_K": (32, 64)}, stages=(2, 3, 4)
)
_LOSS_SUMS = Candidates({"BLOCK_M": (64, 128), "BLOCK_N": (32, 64, 128), "BLOCK_K": (64, 128, 256)})
_LOSS_GRADIENTS = Candidates(
    {"BLOCK_M": (64, 128), "BLOCK_N": (32, 64), "BLOCK_K": (64, 128, 256), "BLOCK_E": (128, 256)}
)
_PIXELS = Candidates(
    {"BLOCK_P": (64, 128), "BLOCK_N": (128, 256), "BLOCK_K": (32, 64, 128), "BLOCK_E": (64, 128, 256)},
    stages=(2, 3, 4),
)
_ELEMENTS = Candidates({"BLOCK": (256, 512, 1024, 2048, 4096)}, stages=(2,))

_FIRST_LAYER = Candidates({"LANES": (16, 32), "BLOCK_N": (64, 128), "BLOCK_M": (64, 128, 256)}, stages=(2, 3))

CANDIDATES: dict[str, Candidates] = {
    "dense": _DENSE,
    "dense_ragged": _DENSE,
    "dense_fast": _DENSE,
    "dense_fast_ragged": _DENSE,
    "input_gradient": _DENSE,
    "input_gradient_fast": _DENSE,
    "last_layers": _LAST_LAYERS,
    "last_layers_saved": _LAST_LAYERS,
    "weight_gradient": _WEIGHT_GRADIENT,
    "weight_gradient_ragged": _WEIGHT_GRADIENT,
    "weight_gradient_fast": _WEIGHT_GRADIENT,
    "weight_gradient_fast_ragged": _WEIGHT_GRADIENT,
    "first_layer": _FIRST_LAYER,
    "first_layer_ragged": _FIRST_LAYER,
    "recurrence_starts": Candidates({"BLOCK_N": (32, 64, 128)}, warps=(1, 2, 4), stages=(1,)),
    "harmonics": Candidates({"LANES": (4, 8, 16), "BLOCK_N": (32, 64, 128)}, warps=(2, 4, 8), stages=(1,)),
    "fourier_basis": Candidates({"BLOCK_C": (8, 16, 32), "BLOCK_T": (16, 32, 64)}, stages=(1,)),
    "row_coefficients": Candidates({"BLOCK_R": (32, 64), "BLOCK_U": (32, 64, 128), "BLOCK_L": (8, 16, 32)}),
    "pixels": _PIXELS,
    "pixels_fast": _PIXELS,
    "largest": _ELEMENTS,
    "split_rows": _ELEMENTS,
    "split_padded": _ELEMENTS,
    "loss_sums": _LOSS_SUMS,
    "loss_sums_long": _LOSS_SUMS,
    "loss_fold": _ELEMENTS,
    "loss_gradients": _LOSS_GRADIENTS,
    "loss_gradients_fast": _LOSS_GRADIENTS,
    "loss_gradients_long": _LOSS_GRADIENTS,
    "loss_gradients_fast_long": _LOSS_GRADIENTS,
    "loss_gather": _ELEMENTS,
}
