"""The contrastive loss: kernels equal the definition, the operator behaves as one of PyTorch's own."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from satclip_engine import _C  # noqa: E402
from satclip_engine.contrast import contrastive_loss  # noqa: E402
from satclip_engine.errors import UsageError  # noqa: E402
from satclip_engine.ops import loss as loss_op  # noqa: E402
from satclip_engine.reference import contrastive  # noqa: E402

INSTRUCTION_SETS = _C.instruction_sets()

# a's rows, b's rows, E, column of the first row's partner
SHAPES = {
    "one pair": (1, 1, 7, 0),
    "two pairs": (2, 2, 1, 0),
    "a row less than a tile": (47, 47, 7, 0),
    "a tile": (48, 48, 256, 0),
    "a row more than a tile": (49, 49, 256, 0),
    "a share of the rows": (200, 333, 256, 60),
    "the last rows, one element": (200, 333, 1, 133),
    "several blocks both ways": (700, 1100, 33, 200),
    "no rows": (0, 5, 7, 2),
}
SCALES = (1.0, 14.3, 100.0)
EPSILON = 2.0**-24


def normalised(rows: int, columns: int, embed: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    result = []
    for count in (rows, columns):
        values = rng.standard_normal((count, embed))
        result.append((values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32))
    return result[0], result[1]


def steepness(a: np.ndarray, b: np.ndarray, scale: float) -> float:
    """S has an error of some EPSILON times this, and so have its log-sum-exp and, relatively, exp S."""
    longest = [np.linalg.norm(rows.astype(np.float64), axis=1).max(initial=0) for rows in (a, b)]
    return 1 + scale * longest[0] * longest[1]


def compare(isa: str, a: np.ndarray, b: np.ndarray, scale: float, offset: int = 0) -> None:
    """Each output and each gradient with the float64 definition."""
    exact = [torch.from_numpy(rows.astype(np.float64)) for rows in (a, b)]
    expected = contrastive.log_sum_exps(*exact, scale, offset)
    result = _C.loss_forward(a, b, scale, offset, 2, isa=isa)
    slack = 8 * EPSILON * steepness(a, b, scale)
    for name, value, right in zip(("row_lse", "column_lse", "partner"), result, expected, strict=True):
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, right.numpy(), rtol=0, atol=slack, err_msg=name)

    factor = 0.5 / len(b)
    sums = [torch.from_numpy(lse.astype(np.float64)) for lse in result[:2]]
    right = contrastive.gradients(*exact, scale, *sums, offset, factor)
    da, db, dscale = _C.loss_backward(a, b, scale, *result[:2], offset, factor, 2, isa=isa)
    # Each row of dS adds up to at most 4 · factor in size.
    unit = 4 * factor * 2 * slack
    for name, value, exact_value, others in (("da", da, right[0], b), ("db", db, right[1], a)):
        atol = unit * scale * np.abs(others).max(initial=0) * max(1, len(others) / len(b))
        np.testing.assert_allclose(value, exact_value.numpy(), rtol=0, atol=atol, err_msg=name)
    assert dscale == pytest.approx(float(right[2]), abs=unit * len(a) * steepness(a, b, 1.0) + 1e-30)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_equal_the_definition(isa, shape, scale):
    rows, columns, embed, offset = SHAPES[shape]
    a, b = normalised(rows, columns, embed)
    if rows == 0:
        assert np.array_equal(_C.loss_forward(a, b, scale, offset, isa=isa)[1], np.full(5, -np.inf))
        da, db, dscale = _C.loss_backward(a, b, scale, np.ones(0), np.ones(5), offset, 1.0, isa=isa)
        assert (da.shape, float(np.abs(db).max()), dscale) == ((0, embed), 0.0, 0.0)
        return
    compare(isa, a, b, scale, offset)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_identical_rows_give_the_loss_of_guessing_and_no_gradient(isa):
    rows = np.repeat(normalised(1, 1, 64)[0], 130, axis=0)
    compare(isa, rows, rows, 100.0)
    row_lse, column_lse, partner = _C.loss_forward(rows, rows, 1.0, isa=isa)
    np.testing.assert_allclose(row_lse - partner, np.log(130), atol=1e-6)
    np.testing.assert_allclose(column_lse - partner, np.log(130), atol=1e-6)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("length", [30.0, 1e3, 1e17])
def test_rows_of_any_length_neither_overflow_nor_vanish(isa, length):
    a, b = normalised(130, 130, 16)
    a, b = (length * a).astype(np.float32), (length * b).astype(np.float32)
    exact = [torch.from_numpy(rows.astype(np.float64)) for rows in (a, b)]
    expected = contrastive.log_sum_exps(*exact, 1.0)
    result = _C.loss_forward(a, b, 1.0, isa=isa)
    for value, right in zip(result, expected, strict=True):
        np.testing.assert_allclose(value, right.numpy(), rtol=0, atol=8 * EPSILON * steepness(a, b, 1.0))
    da, db, dscale = _C.loss_backward(a, b, 1.0, *result[:2], 0, 1.0, isa=isa)
    if length < 100:  # beyond, S is not known to better than 1, and exp S not at all
        compare(isa, a, b, 1.0)
    assert np.isfinite(da).all()
    assert np.isfinite(db).all()
    assert np.isfinite(dscale)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["a", "b", "scale"])
def test_what_is_not_finite_gives_nan(isa, wrong, side):
    a, b = normalised(100, 100, 9)
    scale = 2.0
    if side == "scale":
        scale = wrong
    else:
        {"a": a, "b": b}[side][70, 3] = wrong
    row_lse, column_lse, partner = _C.loss_forward(a, b, scale, 0, 2, isa=isa)
    with np.errstate(invalid="ignore"):
        assert np.isnan((row_lse + column_lse - 2 * partner).mean())
    da, db, _ = _C.loss_backward(a, b, scale, row_lse, column_lse, 0, 0.005, 2, isa=isa)
    assert np.isnan(da).any()
    assert np.isnan(db).any()


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_the_bits_do_not_depend_on_the_number_of_threads(isa):
    a, b = normalised(1000, 1700, 33)
    for rows, columns in ((a, b), (b[:300], a[:400])):
        sums = _C.loss_forward(rows, columns, 14.3, 50, 1, isa=isa)
        grads = _C.loss_backward(rows, columns, 14.3, *sums[:2], 50, 0.1, 1, isa=isa)
        for threads in (2, 5):
            again = _C.loss_forward(rows, columns, 14.3, 50, threads, isa=isa)
            assert all(np.array_equal(*pair) for pair in zip(sums, again, strict=True))
            again = _C.loss_backward(rows, columns, 14.3, *sums[:2], 50, 0.1, threads, isa=isa)
            assert all(np.array_equal(*pair) for pair in zip(grads, again, strict=True))


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_the_exponential_errs_by_its_bound_at_most(isa):
    # Every 601st float32 of [-104, 0], and its ends. Over every seventh: 0.877 units fused, 1.16 not.
    ends = np.array([0.0, -87.33, -104.0], np.float32)
    first, last = (int(bits) for bits in np.array([-0.0, -104.0], np.float32).view(np.uint32))
    x = np.concatenate([np.arange(first, last, 601, np.uint32).view(np.float32), ends])
    result, exact = _C.exponentials(x, isa), np.exp(x.astype(np.float64))
    normal = x >= np.float32(-87.33)
    units = np.abs(result - exact) / np.spacing(exact.astype(np.float32))
    assert units[normal].max() < 1.2
    assert (result[~normal] == 0).all()
    assert np.array_equal(_C.exponentials(np.array([-np.inf, -1e30, 0]), isa), [0, 0, 1])
    strange = np.array([0x7FC00000, 0x7FC00001, 0xFFFFFFFF, 0x7F800001], np.uint32).view(np.float32)
    assert np.isnan(_C.exponentials(strange, isa)).all()


def test_arguments_that_do_not_fit_are_refused():
    a, b = normalised(3, 5, 4)
    with pytest.raises(ValueError, match=r"expected a \(n, E\) and b \(N, E\), found \(3, 4\) and \(5, 3\)"):
        _C.loss_forward(a, b[:, :3], 1.0)
    for offset in (-1, 3):
        with pytest.raises(ValueError, match=rf"partners of a's 3 rows from row {offset} of b"):
            _C.loss_forward(a, b, 1.0, offset)
    with pytest.raises(ValueError, match="expected a log-sum-exp for each row"):
        _C.loss_backward(a, b, 1.0, np.zeros(3), np.zeros(3))
    with pytest.raises(ValueError, match="no instruction set 'sse9'"):
        _C.loss_forward(a, b, 1.0, isa="sse9")
    with pytest.raises(ValueError, match="threads must be at least 1"):
        _C.loss_forward(a, b, 1.0, threads=0)


# The operator


def pairs(count: int = 49, embed: int = 7, dtype=torch.float32) -> list:
    a, b = normalised(count, count, embed)
    return [
        torch.from_numpy(a).to(dtype).requires_grad_(),
        torch.from_numpy(b).to(dtype).requires_grad_(),
        torch.tensor(14.3, dtype=dtype, requires_grad=True),
    ]


def cross_entropies(a, b, scale):
    logits, labels = scale * a @ b.T, torch.arange(len(a))
    rows, columns = (torch.nn.functional.cross_entropy(m, labels) for m in (logits, logits.T))
    return (rows + columns) / 2


@pytest.mark.parametrize(
    ("backend", "dtype", "count", "tolerance"),
    [
        ("auto", torch.float32, 300, 2e-6),
        ("auto", torch.float64, 300, 1e-13),
        pytest.param("triton", torch.float32, 70, 2e-6, marks=pytest.mark.triton),
    ],
)
def test_loss_and_gradients_equal_two_cross_entropies(backend, dtype, count, tolerance):
    operands = pairs(count, 24, dtype)
    expected = cross_entropies(*operands)
    loss = contrastive_loss(*operands, backend=backend)
    assert loss.dtype == dtype
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=tolerance)
    exact_gradients = torch.autograd.grad(expected, operands)
    gradients = torch.autograd.grad(loss, operands)
    for name, result, right in zip(["a", "b", "scale"], gradients, exact_gradients, strict=True):
        assert float((result - right).abs().max()) <= tolerance * float(right.abs().max()), name


def test_the_reference_is_a_gradient():
    operands = pairs(11, 5, torch.float64)
    assert torch.autograd.gradcheck(contrastive_loss, operands)
    loss, row_lse, column_lse = contrastive.contrastive_loss(*operands)
    explicit = contrastive.contrastive_loss_backward(
        torch.tensor(3.0), *(t.detach() for t in (*operands, row_lse, column_lse))
    )
    for result, right in zip(explicit, torch.autograd.grad(3 * loss, operands), strict=True):
        torch.testing.assert_close(result, right)


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        ("auto", torch.float32),
        ("auto", torch.float64),
        pytest.param("triton", torch.float32, marks=pytest.mark.triton),
    ],
)
def test_both_operators_keep_the_rules(backend, dtype):
    operands = pairs(dtype=dtype)
    torch.library.opcheck(loss_op.contrastive_loss, (*operands, backend))
    outputs = loss_op.contrastive_loss(*operands, backend)
    detached = [tensor.detach() for tensor in (outputs[0], *operands, *outputs[1:])]
    torch.library.opcheck(loss_op.contrastive_loss_backward, (*detached, backend))
    assert [output.requires_grad for output in outputs] == [True, False, False]


@pytest.mark.parametrize("backend", ["auto", pytest.param("triton", marks=pytest.mark.triton)])
def test_it_compiles_into_one_graph(backend):
    operands = pairs()
    compiled = torch.compile(contrastive_loss, fullgraph=True)
    loss, expected = (run(*operands, backend=backend) for run in (compiled, contrastive_loss))
    assert torch.equal(loss, expected)
    for result, right in zip(
        torch.autograd.grad(loss, operands), torch.autograd.grad(expected, operands), strict=True
    ):
        assert torch.equal(result, right)


def test_backends_are_those_of_encode():
    a, b, scale = (t.detach() for t in pairs())
    compiled = contrastive_loss(a, b, scale, backend="cpu")
    assert torch.equal(contrastive_loss(a, b, scale), compiled)
    exact = [t.double() for t in (a, b, scale)]
    assert torch.equal(contrastive_loss(*exact), contrastive_loss(*exact, backend="reference"))
    halves = [t.bfloat16() for t in (a, b)]
    widened = contrastive_loss(*(t.float() for t in halves), scale)
    assert torch.equal(contrastive_loss(*halves, scale), widened)
    if torch.cuda.is_available():
        result = contrastive_loss(*(t.cuda() for t in (a, b, scale)))
        torch.testing.assert_close(result.cpu(), compiled)


def test_under_autocast_it_is_computed_in_float32():
    operands = pairs()
    expected = contrastive_loss(*(t.detach().bfloat16().float() for t in operands[:2]), operands[2])
    for op in (contrastive_loss, lambda *values: loss_op.contrastive_loss(*values, "auto")[0]):
        halves = [t.detach().bfloat16().requires_grad_() for t in operands[:2]]
        with torch.autocast("cpu", torch.bfloat16):
            loss = op(*halves, operands[2])
        assert loss.dtype == torch.float32
        assert torch.equal(loss, expected)
        loss.backward()
        assert [t.grad.dtype for t in halves] == [torch.bfloat16] * 2


def test_tensors_need_not_be_contiguous_and_scale_may_be_a_number():
    a, b, scale = (t.detach() for t in pairs())
    wide = torch.zeros(49, 14)
    wide[:, ::2] = a
    strided = b.T.contiguous().T
    assert torch.equal(contrastive_loss(wide[:, ::2], strided, 14.3), contrastive_loss(a, b, scale))


def test_rows_of_two_dtypes_meet_in_the_wider_one_and_a_scale_may_have_a_dimension_of_one():
    a, b, scale = (t.detach() for t in pairs())
    whole, learned = (t.requires_grad_() for t in (scale.double(), scale.reshape(1).clone()))
    result, expected = (
        contrastive_loss(a, b.double(), learned),
        contrastive_loss(a.double(), b.double(), whole),
    )
    assert result.dtype == torch.float64
    assert torch.equal(result, expected)
    (slope,), (right,) = torch.autograd.grad(result, learned), torch.autograd.grad(expected, whole)
    torch.testing.assert_close(slope, right.float().reshape(1))
    assert contrastive_loss(a, b.bfloat16(), learned).shape == ()


def test_transforms_of_torch_func_are_refused_in_words():
    a, b, scale = (t.detach() for t in pairs())
    words = r"contrastive_loss cannot be transformed by torch\.func .* torch\.autograd\.grad or backward\(\)"
    with pytest.raises(NotImplementedError, match=words):
        torch.func.grad(contrastive_loss)(a, b, scale)
    with pytest.raises(NotImplementedError, match=words):
        torch.func.vmap(contrastive_loss)(a[None], b[None], scale[None])


def test_what_it_cannot_compute_is_refused():
    a, b, scale = (t.detach() for t in pairs())
    with pytest.raises(TypeError, match=r"expected float32 or float64, got torch\.int64"):
        contrastive_loss(a.long(), b.long(), scale)
    with pytest.raises(
        UsageError, match=r"takes torch\.float32 on cpu, not torch\.float64 on cpu: .*'reference'"
    ):
        contrastive_loss(a.double(), b.double(), scale, backend="cpu")
    with pytest.raises(ValueError, match="expected as many rows in a as in b, got 49 and 40"):
        contrastive_loss(a, b[:40], scale)
    with pytest.raises(ValueError, match=r"expected a \(N, E\) and b \(N, E\)"):
        contrastive_loss(a[0], b, scale)
    with pytest.raises(ValueError, match="without dimensions"):
        contrastive_loss(a, b, torch.ones(2))
    with pytest.raises(UsageError, match="unknown backend 'gpu': choose from auto, triton, cpu, reference"):
        contrastive_loss(a, b, scale, backend="gpu")


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("of", [0, 1, 2])
def test_forward_mode_derivatives_are_refused_rather_than_zero(of, requires_grad):
    operands = [value.detach().requires_grad_(requires_grad) for value in pairs()]

    def loss(value):
        return contrastive_loss(*operands[:of], value, *operands[of + 1 :])

    refusal = pytest.raises(NotImplementedError, match="contrastive_loss has no forward-mode derivatives")
    with refusal, torch.autograd.forward_ad.dual_level():
        loss(torch.autograd.forward_ad.make_dual(operands[of], torch.ones_like(operands[of])))
    with refusal:
        torch.func.jvp(loss, (operands[of],), (torch.ones_like(operands[of]),))


# Long calls


def test_memory_grows_with_the_rows_not_with_their_pairs():
    code = """
        import resource
        import torch
        from satclip_engine.contrast import contrastive_loss
        a, b = torch.nn.functional.normalize(torch.randn(2, 16384, 64), dim=-1)
        a.requires_grad_(), b.requires_grad_()
        contrastive_loss(a[:64], b[:64], 10.0).backward()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        contrastive_loss(a, b, 10.0).backward()
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    # Embeddings are 4 MB a side; a matrix of all pairs would be 1 GB.
    assert int(done.stdout) < 80e6


@pytest.mark.parametrize("call", ["forward", "backward"])
@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_stops_a_long_call_within_a_second(call, threads):
    code = f"""
        import time
        import torch
        from satclip_engine.ops import loss as loss_op
        torch.set_num_threads({threads})
        a, scale = torch.zeros(120_000, 256), torch.tensor(1.0)
        sums = torch.zeros(120_000)

        def run(a, sums):
            if {call == "forward"}:
                loss_op.contrastive_loss(a, a, scale, "cpu")
            else:
                loss_op.contrastive_loss_backward(scale, a, a, scale, sums, sums, "cpu")

        # torch imports a good deal at the first call, and an interrupt in there may get lost.
        run(a[:64], sums[:64])
        print("ready", flush=True)
        try:
            run(a, sums)
        except KeyboardInterrupt:
            print("interrupted", time.time(), flush=True)
        """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "ready"
    time.sleep(1.5)
    sent = time.time()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    word, when = out.split()
    assert word == "interrupted"
    # A second, with room for a busy machine: the work itself would take minutes.
    assert float(when) - sent < 5.0


def test_what_a_check_raises_ends_a_call():
    class Enough(Exception):
        pass

    def check():
        raise Enough

    a = np.zeros((60_000, 256), np.float32)
    with pytest.raises(Enough):
        _C.loss_forward(a, a, 1.0, threads=2, check=check)


def test_the_reference_is_the_same_block_by_block(monkeypatch):
    a, b, scale = pairs(dtype=torch.float64)
    value = contrastive_loss(a, b, scale)
    whole = torch.autograd.grad(value, (a, b, scale))
    monkeypatch.setattr(contrastive, "_BLOCK_BYTES", 8 * len(b) * 5)
    again = contrastive_loss(a, b, scale)
    torch.testing.assert_close(again, value, rtol=1e-12, atol=0)
    for gradient, expected in zip(torch.autograd.grad(again, (a, b, scale)), whole, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-13)
