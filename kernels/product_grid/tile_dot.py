"""Product of 16-bit operands for a tile of pixels × units: sizes are padded, nothing is masked."""

import triton
import triton.language as tl

from satclip_engine.kernels.device_functions.split_fp16 import split_dot, split_dot_accumulate


def padded(size: int) -> int:
    """Width after padding with zeros: 16, 32, 64 or a multiple of 128."""
    return max(16, triton.next_power_of_2(size)) if size <= 128 else -(-size // 128) * 128


@triton.constexpr_function
def block_size(limit: int, size: int) -> int:
    """Largest power of two that divides a padded size and is `limit` at most."""
    return min(limit, size & -size)


@triton.jit
def tile_dot(
    left,
    right,
    start,
    DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,
    SPLIT: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    UNITS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Compute start[unit] + the sums of left[pixel][k]·right[k][unit] in float32: (BLOCK_P, UNITS).

    left: pointer to the first pixel's row of DEPTH. right: to the first unit in the first row of WIDTH. With
    SPLIT (split_fp16.py) low parts follow the high ones, in the pixels' rows and in as many rows on the
    right. Sums start from the bias because adding it at the end would take a register a unit beside them.
    """
    STEP: tl.constexpr = block_size(BLOCK_K // 2 if SPLIT else BLOCK_K, DEPTH)
    ROW: tl.constexpr = DEPTH * 2 if SPLIT else DEPTH
    depth = tl.arange(0, STEP)
    a = tl.arange(0, BLOCK_P)[:, None] * ROW + depth[None, :]
    b = depth[:, None] * WIDTH + tl.arange(0, UNITS)[None, :]
    sums = tl.broadcast_to(start[None, :], (BLOCK_P, UNITS))
    # Grids have one axis, but the compiler does not know: of unrolled loops it would keep all addresses.
    for k in range(0, DEPTH * tl.num_programs(1), STEP):
        high, right_high = tl.load(left + k + a), tl.load(right + k * WIDTH + b)
        if SPLIT:
            low, right_low = tl.load(left + DEPTH + k + a), tl.load(right + (DEPTH + k) * WIDTH + b)
            if EXACT:
                sums = split_dot_accumulate(high, low, right_high, right_low, sums)
            else:
                sums = split_dot(high, low, right_high, right_low, sums)
        else:
            sums = tl.dot(high, right_high, sums)
    return sums
