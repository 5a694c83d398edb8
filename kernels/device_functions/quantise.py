"""Quantisation of embeddings to integer codes, by the rule of csrc/quantise.h.

code = (value − offset)·inverse_scale, rounded to the nearest even, within ±127 or ±32767; NaN → nodata
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

_CODE_DTYPES = {"int8": torch.int8, "int16": torch.int16}
_ROUNDING = tl.constexpr(12582912.0)  # 1.5·2²³: adding it rounds to an integer


@dataclass(frozen=True)
class DeviceQuantise:
    """Scale and offset of codes: (E,) float32 each, on the device of the values."""

    dtype: str  # "int8" or "int16"
    inverse_scale: Tensor
    offset: Tensor

    def __post_init__(self) -> None:
        if self.dtype not in _CODE_DTYPES:
            raise ValueError(f"codes are int8 or int16, not {self.dtype}")

    @property
    def torch_dtype(self) -> torch.dtype:
        return _CODE_DTYPES[self.dtype]

    @property
    def bits(self) -> int:
        return torch.iinfo(self.torch_dtype).bits


@triton.jit
def codes(value, inverse_scale, offset, BITS: tl.constexpr):
    """Codes of a float32 tile: (n, E), (E,), (E,) → (n, E) int8 or int16."""
    LIMIT: tl.constexpr = 2 ** (BITS - 1) - 1
    code = (value - offset[None, :]) * inverse_scale[None, :]
    code = tl.where(code > LIMIT, LIMIT, tl.where(code < -LIMIT, -LIMIT, code))
    code = (code + _ROUNDING) - _ROUNDING
    code = tl.where(code == code, code, -LIMIT - 1)
    return code.to(tl.int8) if BITS == 8 else code.to(tl.int16)
