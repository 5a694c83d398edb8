"""The contrastive loss over several processes equals that of one."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest

torch = pytest.importorskip("torch")

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


@pytest.mark.parametrize(("case", "dtype"), [*((case, "float32") for case in SHARES), ("unequal", "float64")])
def test_the_mean_gradient_over_processes_is_that_of_a_single_one(tmp_path, case, dtype):
    shares = SHARES[case]
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                textwrap.dedent(WORKER),
                str(tmp_path / "store"),
                str(rank),
                json.dumps(shares),
                dtype,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(len(shares))
    ]
    ended = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(shares), ended[0][1][-2000:]
    for out, _ in ended:
        loss, alone, grads, expected = json.loads(out.splitlines()[-1])
        assert loss == pytest.approx(alone, rel=1e-6)
        for name, right in expected.items():
            found, wanted = torch.tensor(grads[name]), torch.tensor(right)
            assert float((found - wanted).abs().max()) < 1e-6 * max(1.0, float(wanted.abs().max())), name


def test_a_group_of_one_process_equals_none(tmp_path):
    import torch.distributed as dist

    torch.manual_seed(1)
    values = [torch.randn(50, 6), torch.randn(50, 6), torch.tensor(3.0)]
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        results = []
        for group in (None, dist.group.WORLD):
            given = [value.clone().requires_grad_() for value in values]
            loss = contrastive_loss(*given, group=group)
            results.append([loss, *torch.autograd.grad(loss, given)])
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
