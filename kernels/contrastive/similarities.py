"""Products of rows of a and rows of b, S / scale, from split-fp16 operands (split_operands.py).

    high, low = load_tile(operand, ...)
    s = scale * similarities(...)

Operands are padded with zeros, so that tiles need no masks.
"""

import triton
import triton.language as tl

from satclip_engine.kernels.device_functions.split_fp16 import split_dot


@triton.jit
def load_tile(values, plane, rows, element, WIDTH: tl.constexpr, BLOCK_E: tl.constexpr):
    """Load high, low of BLOCK_E elements of the rows, from `element` on: (len(rows), BLOCK_E) each."""
    elements = element + tl.arange(0, BLOCK_E)
    pointers = values + rows.to(tl.int64)[:, None] * WIDTH + elements[None, :]
    return tl.load(pointers), tl.load(pointers + plane)


@triton.jit
def similarities(
    x_high,
    x_low,
    y_high,
    y_low,
    x,
    y,
    x_plane,
    y_plane,
    x_rows,
    y_rows,
    WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Multiply rows of x with rows of y: tiles as they are if they hold whole rows, else by BLOCK_K."""
    sum = tl.zeros((x_rows.shape[0], y_rows.shape[0]), tl.float32)
    if x_high.shape[1] == WIDTH and y_high.shape[1] == WIDTH:
        sum = split_dot(x_high, x_low, tl.trans(y_high), tl.trans(y_low), sum)
    else:
        for element in range(0, WIDTH, BLOCK_K):
            left_high, left_low = load_tile(x, x_plane, x_rows, element, WIDTH, BLOCK_K)
            right_high, right_low = load_tile(y, y_plane, y_rows, element, WIDTH, BLOCK_K)
            sum = split_dot(left_high, left_low, tl.trans(right_high), tl.trans(right_low), sum)
    return sum
