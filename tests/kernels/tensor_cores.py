"""Triton's interpreter with the rounding of tensor cores: its own dot multiplies float32 in full."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
from triton.runtime import interpreter


def tf32(values: np.ndarray) -> np.ndarray:
    """float32 rounded to 11 significant bits, half away from zero, as cvt.rna.tf32.f32."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def three_products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a · b as 3×TF32 computes it: the high and low parts of both, without the product of the low ones."""
    a_high, b_high = tf32(a), tf32(b)
    a_low, b_low = tf32(a - a_high), tf32(b - b_high)
    return (a_low @ b_high + a_high @ b_low) + a_high @ b_high


@contextmanager
def rounding_like_tensor_cores() -> Iterator[None]:
    """Dots of float32 in kernels are 3×TF32 while it lasts."""
    own = interpreter.InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        if a.data.dtype != np.float32:
            return own(self, a, b, d, *rest)
        with np.errstate(invalid="ignore"):
            return interpreter.TensorHandle(three_products(a.data, b.data) + d.data, d.dtype.scalar)

    with patch.object(interpreter.InterpreterBuilder, "create_dot", create_dot):
        yield
