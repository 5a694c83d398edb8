"""Arrays that are not NumPy's, and strange ones that are, are read or refused in words."""

from __future__ import annotations

import types

import numpy as np
import pytest

from satclip_engine import _C

LATTICE = np.ones((9, 9, 2), np.float32)


def resampled(out) -> None:
    _C.resample(LATTICE, [4.0], [4.0], out)


def on_a_gpu(**changes):
    """An object with the __cuda_array_interface__ of a float32 array (1, 1, 2)."""
    interface = {"shape": (1, 1, 2), "typestr": "<f4", "data": (256, False), "version": 3, "stream": None}
    return types.SimpleNamespace(__cuda_array_interface__=interface | changes)


def test_items_without_bytes_are_refused_by_their_type():
    with pytest.raises(ValueError, match="out must be a writable float32 array"):
        resampled(np.zeros((1, 1, 2), np.dtype([])))


def test_what_the_array_interface_forbids_is_refused():
    with pytest.raises(ValueError, match="out: stream 0 is ambiguous"):
        resampled(on_a_gpu(stream=0))
    with pytest.raises(ValueError, match="out has a mask"):
        resampled(on_a_gpu(mask=object()))


def test_a_pointer_that_no_driver_knows_is_no_array_on_a_gpu():
    message = "cudaPointerGetAttributes|no CUDA kernels|is not memory of a CUDA device"
    with pytest.raises((RuntimeError, ValueError), match=message):
        resampled(on_a_gpu())
