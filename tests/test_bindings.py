"""Compiled functions check positions, sizes and alignment before anything is computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from satclip_engine import _C


def misaligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array one byte beside where its items should lie."""
    dtype = np.dtype(dtype)
    memory = np.zeros(int(np.prod(shape)) * dtype.itemsize + 1, np.uint8)
    array = memory[1:].view(dtype).reshape(shape)
    assert not array.flags.aligned
    return array


def pack(**changes: Any) -> np.ndarray:
    arguments = {
        "pixels": np.ones((4, 16, 3), np.float32),
        "tiles": np.zeros((1, 3, 16, 16), np.int16),
        "first_row": 0,
        "dtype": "int16",
        "predictor": 1,
        "inverse_scale": np.ones(3, np.float32),
        "offset": np.zeros(3, np.float32),
        "clipped": np.zeros(3, np.int64),
        "overshoot": np.zeros(3, np.float32),
        "valid": np.zeros(1, np.int64),
        **changes,
    }
    pixels, tiles = arguments.pop("pixels"), arguments.pop("tiles")
    _C.pack_tiles(pixels, tiles, **arguments)
    return tiles


@pytest.mark.parametrize("first_row", [2**31 - 1, 2**31 - 2, 13, -1, -(2**31)])
def test_rows_that_do_not_fit_a_tile_are_refused_whatever_their_number(first_row: int) -> None:
    with pytest.raises(ValueError, match="first_row: the rows do not fit"):
        pack(first_row=first_row)


@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [
        ("pixels", (4, 16, 3), np.float32),
        ("tiles", (1, 3, 16, 16), np.int16),
        ("clipped", (3,), np.int64),
        ("overshoot", (3,), np.float32),
        ("valid", (1,), np.int64),
    ],
)
def test_tiles_are_packed_between_aligned_arrays_only(name: str, shape: tuple[int, ...], dtype: Any) -> None:
    with pytest.raises(ValueError, match=name):
        pack(**{name: misaligned(shape, dtype)})


def test_scales_that_are_not_aligned_are_copied() -> None:
    scale = misaligned((3,), np.float32)
    scale[:] = 2.0
    np.testing.assert_array_equal(pack(inverse_scale=scale), pack(inverse_scale=np.full(3, 2.0, np.float32)))


@pytest.mark.parametrize("offset", [2**63 - 1, 2**63 - 4, 1, -1, -(2**63)])
def test_partners_beyond_the_rows_are_refused_whatever_their_number(offset: int) -> None:
    rows = np.ones((4, 7), np.float32)
    lse = np.zeros(4, np.float32)
    for job in (
        lambda: _C.loss_forward(rows, rows, 1.0, offset=offset),
        lambda: _C.loss_backward(rows, rows, 1.0, lse, lse, offset=offset),
    ):
        with pytest.raises(ValueError, match="are not all among its 4"):
            job()


@pytest.mark.parametrize(
    ("count", "hidden"),
    [(16, [-16]), (16, [0]), (16, [2**24 + 1]), (-1, [16]), (2**62, [16]), (2**63 - 1, [1])],
)
def test_sizes_that_no_batch_has_are_refused(count: int, hidden: list[int]) -> None:
    with pytest.raises(ValueError, match=r"hidden layer has|count must be"):
        _C.train_saved(count, hidden)
    assert _C.train_saved(1, [16]) >= 16


def test_points_and_weights_that_are_not_aligned_are_copied_and_results_refused() -> None:
    random = np.random.default_rng(0)
    weights = [random.normal(size=shape).astype(np.float32) for shape in ((16, 9), (3, 16))]
    biases = [random.normal(size=size).astype(np.float32) for size in (16, 3)]
    points = np.array([[2.0, 48.0], [-70.0, -30.0]])
    network, expected = _C.Network(3, weights, biases), np.empty((2, 3), np.float32)
    network.encode(points, expected, threads=1)
    shifted_weights = [misaligned(weight.shape, np.float32) for weight in weights]
    shifted_points = misaligned(points.shape, np.float64)
    for target, values in zip([*shifted_weights, shifted_points], [*weights, points], strict=True):
        target[...] = values
    out = np.empty_like(expected)
    _C.Network(3, shifted_weights, biases).encode(shifted_points, out, threads=1)
    np.testing.assert_array_equal(out, expected)
    with pytest.raises(ValueError, match="aligned to 4 bytes"):
        network.encode(points, misaligned((2, 3), np.float32), threads=1)


def test_lattices_are_resampled_between_aligned_arrays_only() -> None:
    lattice, positions = np.ones((16, 16, 2), np.float32), np.array([5.5, 6.5])
    out = np.empty((2, 2, 2), np.float32)
    for arguments in (
        (misaligned(lattice.shape, np.float32), positions, positions, out),
        (lattice, positions, positions, misaligned(out.shape, np.float32)),
    ):
        with pytest.raises(ValueError, match="must be aligned to its items of 4 bytes"):
            _C.resample(*arguments)
