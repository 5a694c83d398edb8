"""The contrastive loss's kernels, interpreted, equal the definition in float64."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from satclip_engine.kernels import loss  # noqa: E402
from satclip_engine.kernels.contrastive import log_sum_exps, loss_gradients, partition  # noqa: E402
from satclip_engine.kernels.launch import recording  # noqa: E402
from satclip_engine.reference import contrastive  # noqa: E402

# The interpreter is numpy, which warns of what NaN and empty sums come from.
pytestmark = [pytest.mark.triton, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

# a's rows, b's rows, E, column of the first row's partner. Interpreted blocks are 32 rows and 128 elements.
SHAPES = {
    "one pair": (1, 1, 7, 0),
    "two pairs, one element": (2, 2, 1, 0),
    "a row less than a block": (31, 31, 37, 0),
    "a block": (32, 32, 128, 0),
    "a row more than a block": (33, 33, 5, 0),
    "two blocks of elements": (33, 33, 256, 0),
    "long rows": (20, 35, 300, 11),
    "a share of the rows": (40, 99, 37, 50),
    "the last rows": (33, 99, 16, 66),
    "several blocks both ways": (100, 130, 5, 20),
}
SCALES = (1.0, 100.0)
EPSILON = 2.0**-24
SUMS = ("row_lse", "column_lse", "partner")
NAMES = ("da", "db", "dscale")


def pairs(rows, columns, embed, length=1.0, seed=0):
    """Rows of that length."""
    generator = torch.Generator().manual_seed(seed)
    sides = (torch.randn(n, embed, generator=generator, dtype=torch.float64) for n in (rows, columns))
    return tuple((length * torch.nn.functional.normalize(x, dim=1)).float() for x in sides)


def exact(*values):
    return [value.double() for value in values]


def steepness(a, b, scale) -> float:
    """S errs by some EPSILON times this, and so do its log-sum-exps and, relatively, its exponentials."""
    longest = [float(rows.double().norm(dim=1).max()) if len(rows) else 0.0 for rows in (a, b)]
    return 1 + abs(float(scale)) * longest[0] * longest[1]


def slack(a, b, scale) -> float:
    """Error that S and its log-sum-exps may have.

    In units of the longest product: pairs of halves 2 · 2, low · low 4, the sum over elements in float32 3;
    the product with scale 1, the sum of exponentials and its logarithm 2.
    """
    return 14 * EPSILON * steepness(a, b, scale)


def compare(a, b, scale, offset=0):
    """Each output and each gradient with the float64 definition."""
    scale = torch.tensor(scale)
    expected = contrastive.log_sum_exps(*exact(a, b, scale), offset)
    sums = loss.log_sum_exps(a, b, scale, offset)
    for name, value, right in zip(SUMS, sums, expected, strict=True):
        assert value.dtype == torch.float32, name
        torch.testing.assert_close(value.double(), right, rtol=0, atol=slack(a, b, scale), msg=name)

    factor = torch.tensor(0.5 / len(b))
    expected = contrastive.gradients(*exact(a, b, scale, *sums[:2]), offset, factor.double())
    gradients = loss.gradients(a, b, scale, *sums[:2], offset, factor)
    for name, value, right, atol in zip(
        NAMES, gradients, expected, tolerances(a, b, scale, factor), strict=True
    ):
        assert (value.dtype, value.shape) == (torch.float32, right.shape), name
        torch.testing.assert_close(value.double(), right, rtol=0, atol=atol, msg=name)


def tolerances(a, b, scale, factor):
    """Each row of dS adds up to at most 4 · factor in size, and errs by twice the slack of S of that."""
    unit = 4 * float(factor) * 2 * slack(a, b, scale)
    longest = [float(rows.abs().max()) for rows in (a, b)]
    by_rows = unit * float(scale) * max(1, len(a) / len(b))
    return by_rows * longest[1], by_rows * longest[0], unit * len(a) * steepness(a, b, 1.0)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_equal_the_definition(shape, scale):
    rows, columns, embed, offset = SHAPES[shape]
    compare(*pairs(rows, columns, embed), scale, offset)


@pytest.mark.parametrize("columns", [0, 5])
def test_no_rows_add_nothing(columns):
    a, b = pairs(0, columns, 7)
    scale = torch.tensor(2.0)
    row_lse, column_lse, partner = loss.log_sum_exps(a, b, scale, 0)
    assert (row_lse.shape, partner.shape) == ((0,), (0,))
    assert torch.equal(column_lse, torch.full((columns,), -torch.inf))
    da, db, dscale = loss.gradients(a, b, scale, row_lse, torch.ones(columns), 0, scale)
    assert da.shape == (0, 7)
    assert torch.equal(db, torch.zeros(columns, 7))
    assert float(dscale) == 0.0


def test_identical_rows_give_the_loss_of_guessing():
    rows = pairs(1, 1, 64)[0].expand(70, 64)
    compare(rows, rows, 100.0)
    row_lse, column_lse, partner = loss.log_sum_exps(rows, rows, torch.tensor(1.0))
    guess = torch.tensor(70.0).log().expand(70)
    torch.testing.assert_close(row_lse - partner, guess, rtol=0, atol=slack(rows, rows, 1.0))
    torch.testing.assert_close(column_lse - partner, guess, rtol=0, atol=slack(rows, rows, 1.0))


def test_pairs_that_are_told_apart_with_certainty_have_no_gradient():
    a = pairs(70, 70, 64)[0]
    scale, factor = torch.tensor(1000.0), torch.tensor(1.0)
    row_lse, column_lse, partner = loss.log_sum_exps(a, a, scale)
    assert torch.equal(row_lse, partner)
    assert torch.equal(column_lse, partner)
    for name, gradient in zip(
        NAMES, loss.gradients(a, a, scale, row_lse, column_lse, 0, factor), strict=True
    ):
        assert float(gradient.abs().max()) < 1e-30, name


@pytest.mark.parametrize("length", [1e-19, 1e-6, 30.0, 1e3, 1e17])
def test_rows_of_any_length_neither_overflow_nor_vanish(length):
    a, b = pairs(70, 70, 16, length)
    if length < 100:  # beyond, S is not known to better than 1, and exp S not at all
        compare(a, b, 1.0)
    scale = torch.tensor(1.0)
    sums = loss.log_sum_exps(a, b, scale)
    for value, right in zip(sums, contrastive.log_sum_exps(*exact(a, b, scale)), strict=True):
        torch.testing.assert_close(value.double(), right, rtol=0, atol=slack(a, b, scale))
    for name, gradient in zip(NAMES, loss.gradients(a, b, scale, *sums[:2], 0, scale), strict=True):
        assert gradient.isfinite().all(), name


def test_short_rows_among_long_ones_keep_their_digits():
    a, b = pairs(39, 40, 16)
    a[::2] *= 1e-3
    b[1::2] *= 1e-3
    compare(a, b, 14.3, 1)
    scale = torch.tensor(1e6)
    partner = loss.log_sum_exps(a, b, scale, 1)[2][::2]  # of short rows with short rows
    expected = contrastive.log_sum_exps(*exact(a, b, scale), 1)[2][::2]
    torch.testing.assert_close(partner.double(), expected, rtol=0, atol=slack(a[::2], b[1::2], scale))


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("side", ["a", "b", "scale"])
def test_what_is_not_finite_gives_nan(wrong, side):
    a, b = pairs(50, 50, 9)
    scale = torch.tensor(wrong if side == "scale" else 2.0)
    if side != "scale":
        {"a": a, "b": b}[side][40, 3] = wrong
    row_lse, column_lse, partner = loss.log_sum_exps(a, b, scale)
    assert (row_lse + column_lse - 2 * partner).mean().isnan()
    da, db, dscale = loss.gradients(a, b, scale, row_lse, column_lse, 0, torch.tensor(0.01))
    assert da.isnan().any()
    assert db.isnan().any()
    assert dscale.isnan()


@pytest.mark.parametrize("side", ["a", "b"])
def test_a_nan_spoils_only_what_it_belongs_to(side):
    a, b = pairs(50, 50, 9)
    {"a": a, "b": b}[side][40, 3] = torch.nan
    scale = torch.tensor(2.0)
    expected = contrastive.log_sum_exps(a, b, scale)
    for value, right in zip(loss.log_sum_exps(a, b, scale), expected, strict=True):
        assert torch.equal(value.isnan(), right.isnan())


def test_the_bits_are_the_same_every_time_and_do_not_depend_on_strides():
    a, b = pairs(70, 110, 37)
    scale, factor = torch.tensor(14.3), torch.tensor(0.1)
    wide = torch.zeros(70, 74)
    wide[:, ::2] = a
    first = loss.log_sum_exps(a, b, scale, 20)
    gradients = loss.gradients(a, b, scale, *first[:2], 20, factor)
    for again in ((a, b), (wide[:, ::2], b.T.contiguous().T)):
        assert all(map(torch.equal, first, loss.log_sum_exps(*again, scale, 20)))
        assert all(map(torch.equal, gradients, loss.gradients(*again, scale, *first[:2], 20, factor)))


def test_a_row_does_not_depend_on_where_it_stands():
    a, b = pairs(70, 70, 37)
    scale = torch.tensor(14.3)
    order = torch.randperm(70, generator=torch.Generator().manual_seed(1))
    assert torch.equal(loss.log_sum_exps(a, b, scale)[0][order], loss.log_sum_exps(a[order], b, scale)[0])


def test_shares_of_the_rows_add_up_to_all():
    a, b = pairs(80, 80, 16)
    scale, factor = torch.tensor(14.3), torch.tensor(1.0)
    row_lse, column_lse, partner = loss.log_sum_exps(a, b, scale)
    whole = loss.gradients(a, b, scale, row_lse, column_lse, 0, factor)
    shares = [slice(0, 30), slice(30, 80)]
    shares_sums = [loss.log_sum_exps(a[rows], b, scale, rows.start) for rows in shares]
    joined = (
        torch.cat([sums[0] for sums in shares_sums]),
        torch.logaddexp(shares_sums[0][1], shares_sums[1][1]),
        torch.cat([sums[2] for sums in shares_sums]),
    )
    for name, value, right in zip(SUMS, joined, (row_lse, column_lse, partner), strict=True):
        torch.testing.assert_close(value, right, rtol=0, atol=slack(a, b, scale), msg=name)
    grads = [
        loss.gradients(a[rows], b, scale, row_lse[rows], column_lse, rows.start, factor) for rows in shares
    ]
    added = torch.cat([grad[0] for grad in grads]), grads[0][1] + grads[1][1], grads[0][2] + grads[1][2]
    for name, value, right, atol in zip(NAMES, added, whole, tolerances(a, b, scale, factor), strict=True):
        torch.testing.assert_close(value, right, rtol=0, atol=atol, msg=name)


def test_more_blocks_of_rows_than_a_stripe_are_folded_twice(monkeypatch):
    monkeypatch.setattr(log_sum_exps, "STRIPE_BLOCKS", 2)
    compare(*pairs(150, 160, 5), 14.3, 10)


def test_gradients_add_up_over_chunks_of_the_other_rows(monkeypatch):
    monkeypatch.setattr(loss_gradients, "CHUNK_ROWS", 64)
    compare(*pairs(70, 150, 5), 14.0, 20)


def test_fast_gradients_err_by_their_bound_at_most():
    a, b = pairs(70, 90, 37)
    scale, factor = torch.tensor(14.3), torch.tensor(1.0)
    row_lse, column_lse, _ = loss.log_sum_exps(a, b, scale, 7)
    operands = (scale, row_lse, column_lse)
    expected = contrastive.gradients(*exact(a, b, *operands), 7, factor.double())
    gradients = loss.gradients(a, b, *operands, 7, factor, "fast")
    s = scale * a @ b.T
    p = torch.exp(s - row_lse[:, None]) + torch.exp(s - column_lse)
    p.diagonal(7).sub_(2)
    bounds = 2**-10 * scale * (p.abs() @ b.abs()), 2**-10 * scale * (p.abs().T @ a.abs())
    bounds = (*bounds, (bounds[0] * a.abs()).sum() / scale)
    slacks = tolerances(a, b, scale, factor)
    for name, value, right, bound, atol in zip(NAMES, gradients, expected, bounds, slacks, strict=True):
        assert ((value - right).abs() <= bound + atol).all(), name


@pytest.mark.parametrize("capability", ["sm_80", "sm_90"])
def test_nothing_in_memory_grows_with_the_pairs(capability):
    rows, embed = 131_072, 256
    a, b = torch.empty(2, rows, embed, device="meta")
    scale, lse = torch.empty((), device="meta"), torch.empty(rows, device="meta")
    with recording(capability) as record:
        loss.log_sum_exps(a, b, scale)
        loss.gradients(a, b, scale, lse, lse, 0, scale)
    storages = {
        tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes()
        for launch in record.launches
        for tensor in launch.arguments.values()
        if isinstance(tensor, torch.Tensor)
    }
    operands = 2 * rows * embed * 4
    assert max(storages.values()) <= operands
    # a and b, split forward and backward, their gradients, and partial sums of columns: 1 KB a column.
    assert sum(storages.values()) < 5 * operands
    assert rows**2 * 4 > 200 * operands


@pytest.mark.parametrize("blocks", [1, 5, 64, 128, 132, 133, 1024])
@pytest.mark.parametrize("others", [1, 33, 8192])
def test_splits_cover_everything_and_keep_the_processors_busy(blocks, others):
    x = torch.empty(0, device="meta")
    with recording("sm_90"):
        cuts, share = partition.splits(blocks, others, 32, x)
    assert (cuts - 1) * share < others <= cuts * share
    assert share % 32 == 0
    if others == 8192:
        waves = blocks * cuts / 132
        assert waves / -(-waves // 1) > 0.75
