"""The contrastive loss over several processes equals that of one."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest

torch = pytest.importorskip("torch")

from factories.ranks import Group, run_ranks  # noqa: E402

from satclip_engine.contrast import contrastive_loss  # noqa: E402

# Rows of each process.
SHARES = {"equal": (64, 64), "unequal": (100, 31), "four": (33, 48, 1, 70), "one has none": (20, 0, 5, 60)}

WORKER = """
    import json, sys
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    from satclip_engine.contrast import contrastive_loss

    where, rank, shares, dtype = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4]
    dist.init_process_group("gloo", init_method="file://" + where, rank=rank, world_size=len(shares))
    torch.manual_seed(0)
    a, b = torch.randn(2, sum(shares), 12, dtype=getattr(torch, dtype))
    own = slice(sum(shares[:rank]), sum(shares[: rank + 1]))

    class Towers(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = torch.nn.Linear(12, 8), torch.nn.Linear(12, 8)
            self.log_scale = torch.nn.Parameter(torch.tensor(1.5))

        def forward(self, a, b):
            return self.left(a), self.right(b), self.log_scale.exp()

    towers = Towers().to(a.dtype)
    shared = DistributedDataParallel(towers)
    loss = contrastive_loss(*shared(a[own], b[own]), group=dist.group.WORLD)
    (2 * loss).backward()
    grads = {name: p.grad.tolist() for name, p in towers.named_parameters()}
    shared.zero_grad()
    alone = contrastive_loss(*towers(a, b))
    (2 * alone).backward()
    expected = {name: p.grad.tolist() for name, p in towers.named_parameters()}
    print(json.dumps([loss.item(), alone.item(), grads, expected]))
    dist.destroy_process_group()
    """


CASES = [*((case, "float32") for case in SHARES), ("unequal", "float64")]


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    """The groups of processes by shares and dtype, after all have computed."""
    folder = tmp_path_factory.mktemp("groups")
    groups = {
        (case, dtype): Group(
            str(folder / f"{case} {dtype}"), len(SHARES[case]), (json.dumps(SHARES[case]), dtype)
        )
        for case, dtype in CASES
    }
    run_ranks(WORKER, *groups.values(), imports=("torch._dynamo",))  # DistributedDataParallel needs it
    return groups


@pytest.mark.parametrize(("case", "dtype"), CASES)
def test_the_mean_gradient_over_processes_is_that_of_a_single_one(groups, case, dtype):
    for out in groups[case, dtype].printed():
        loss, alone, grads, expected = json.loads(out.splitlines()[-1])
        assert loss == pytest.approx(alone, rel=1e-6)
        for name, right in expected.items():
            shared, single = torch.tensor(grads[name]), torch.tensor(right)
            assert float((shared - single).abs().max()) < 1e-6 * max(1.0, float(single.abs().max())), name


def test_a_group_of_one_process_equals_none(tmp_path):
    import torch.distributed as dist

    torch.manual_seed(1)
    values = [torch.randn(50, 6), torch.randn(50, 6), torch.tensor(3.0)]
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        results = []
        for group in (None, dist.group.WORLD):
            operands = [value.clone().requires_grad_() for value in values]
            loss = contrastive_loss(*operands, group=group)
            results.append([loss, *torch.autograd.grad(loss, operands)])
        for alone, shared in zip(*results, strict=True):
            torch.testing.assert_close(alone, shared, rtol=1e-6, atol=1e-8)
        halves = [value.bfloat16() for value in values[:2]]
        with torch.autocast("cpu", torch.bfloat16):
            loss = contrastive_loss(*halves, values[2], group=dist.group.WORLD)
        assert loss.dtype == torch.float32
        with pytest.raises(ValueError, match="as many rows"):
            contrastive_loss(values[0], values[1][:40], values[2], group=dist.group.WORLD)
    finally:
        dist.destroy_process_group()


FAULTY = """
    import json, sys
    import torch
    import torch.distributed as dist
    from satclip_engine.contrast import contrastive_loss
    from satclip_engine.errors import UsageError

    where, rank = sys.argv[1], int(sys.argv[2])
    dist.init_process_group("gloo", init_method="file://" + where, rank=rank, world_size=2)
    torch.manual_seed(0)
    a, b = torch.randn(2, 10, 6).unbind(0)
    # What rank 1 gives; rank 0 has nothing to blame.
    cases = {
        "rows": (a, b[:9], 2.0, "auto"),
        "shape": (a[0], b, 2.0, "auto"),
        "columns": (a[:, :5], b[:, :5], 2.0, "auto"),
        "no columns": (a[:, :0], b[:, :0], 2.0, "auto"),
        "two dtypes": (a, b.double(), 2.0, "auto"),
        "dtype": (a.double(), b.double(), 2.0, "auto"),
        "integers": (a.long(), b.long(), 2.0, "auto"),
        "backend": (a, b, 2.0, "gpu"),
        "scale": (a, b, torch.ones(2), "auto"),
        "no tensor": (a, None, 2.0, "auto"),
        "nothing": (a, b, 2.0, "auto"),
    }
    told = {}
    for case, given in cases.items():
        *given, backend = given if rank == 1 else cases["nothing"]
        try:
            told[case] = contrastive_loss(*given, group=dist.group.WORLD, backend=backend).item()
        except UsageError as error:
            told[case] = str(error)
    print(json.dumps(told))
    dist.destroy_process_group()
    """

TOLD = {
    "rows": "rank 1: expected as many rows in a as in b, got 10 and 9",
    "shape": "rank 1: expected a (N, E) and b (N, E), got (6,) and (10, 6)",
    "columns": "rank 1: expected rows of 6 torch.float32, as rank 0 has, got rows of 5 torch.float32",
    "no columns": "rank 1: expected a (N, E) and b (N, E), got (10, 0) and (10, 0)",
    "two dtypes": "rank 1: expected rows of 6 torch.float32, as rank 0 has, got rows of 6 torch.float64",
    "dtype": "rank 1: expected rows of 6 torch.float32, as rank 0 has, got rows of 6 torch.float64",
    "integers": "rank 1: a, b and scale: expected float32 or float64, got torch.int64",
    "backend": "rank 1: unknown backend 'gpu': choose from auto, triton, cpu, reference",
    "scale": "rank 1: scale: expected a tensor without dimensions, got shape (2,)",
    "no tensor": "rank 1: b must be a tensor, not NoneType",
}


def test_every_process_tells_what_one_of_them_cannot_use(tmp_path):
    group = Group(str(tmp_path / "store"), 2)
    run_ranks(FAULTY, group)
    first, second = map(json.loads, group.printed())
    assert first == second
    assert first.pop("nothing") > 0  # after all that the group is as good as before
    assert first == TOLD


ALONE = """
    import sys
    import torch
    import torch.distributed as dist
    from satclip_engine.contrast import contrastive_loss

    dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
    a, b = torch.randn(2, 20, 6, requires_grad=True).unbind(0)
    loss = contrastive_loss(a, b, 2.0, group=dist.group.WORLD)
    try:
        torch.autograd.grad(loss, a, create_graph=True)
    except RuntimeError as error:
        print(error)
    """


def test_second_derivatives_are_refused_and_not_left_out(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ALONE), str(tmp_path / "meet")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == "contrastive_loss has no second derivatives", done.stderr
