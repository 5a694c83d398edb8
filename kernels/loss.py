"""Symmetric contrastive loss: log-sum-exps of S = scale · a · bᵀ and their gradient, never holding S.

    row_lse, column_lse, partner = log_sum_exps(a, b, scale, offset)
    da, db, dscale = gradients(a, b, scale, row_lse, column_lse, offset, factor, precision)

Both mean what reference/contrastive.py says, in float32. n rows of a meet N rows of b, their partners from
row `offset` of b on. Operands are split-fp16 (split_operands.py), three products on tensor cores for
one. Sums are added in a fixed order: the same bits every time.

Forward (contrastive/log_sum_exps.py), one product: a program holds BLOCK_M rows of a in shared memory,
the running maximum and sum of each row in registers, and lets the rows of b pass. Sums of columns it
cannot hold; those over its own rows go to memory, two numbers a column, and are folded by another
kernel. A second pass, with a and b exchanged, would need no such numbers but cost a product more: at
N = 131 072 and E = 256, 29 ms of an H100's tensor cores against 0.7 ms of writing and reading
8 N² / BLOCK_M bytes. The numbers of STRIPE_BLOCKS blocks of rows are in memory at a time: 1 KB a column,
as much as a row of b.

Backward (contrastive/loss_gradients.py), four products: programs hold BLOCK_M rows of a and their
gradient and let b pass, then programs hold rows of b and let a pass; each makes S again. One pass in
three products would need Pᵀ · a added up over all programs: atomically, so in no order, or as a gradient
of b for every program, some GB. The same bits every time are worth a third.

Configurations (tuning.json) are by estimate, not yet measured. sm_90: 128 split rows of 256 elements take
128 KB of shared memory and leave room for two or three tiles of 32; such a tile costs L2 14 bytes a clock,
and is short enough for S and the gradient, 128 × 256, to stay in registers. sm_80, whose operands pass
through registers: the rows held are read anew in pieces of 64 elements, and gradients take 64 rows. Rows
of more than 256 elements are read in pieces everywhere, and their gradient is made 256 elements at a
time, with S anew for each.

An H100's tensor cores at their peak, 459 T multiply-adds of float16 a second, need at E = 256:

    N = 8192      forward 0.11 ms   backward 0.45 ms   (fast: 0.30 ms)
    N = 131 072   forward 29 ms     backward 115 ms    (fast: 77 ms)
"""

from satclip_engine.kernels.contrastive.log_sum_exps import log_sum_exps
from satclip_engine.kernels.contrastive.loss_gradients import gradients

__all__ = ["gradients", "log_sum_exps"]
