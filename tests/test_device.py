"""Devices by name, what is said of those that are not there, and which backend computes where."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import pytest

import satclip_engine as se
from satclip_engine import _C, backends
from satclip_engine.backends import cpu, triton
from satclip_engine.backends import cuda as cuda_backend
from satclip_engine.backends.protocols import BatchHints, Call
from satclip_engine.device import CPU, Device, absence, parse_device, torch_absence
from satclip_engine.errors import MissingExtra, UsageError
from satclip_engine.weights import Layers


@pytest.mark.parametrize(
    ("name", "device"),
    [("cpu", CPU), ("cuda", Device("cuda")), ("cuda:0", Device("cuda", 0)), ("cuda:12", Device("cuda", 12))],
)
def test_a_device_is_read_as_it_is_written(name, device):
    assert parse_device(name) == device
    assert str(device) == name


def test_a_torch_device_is_a_name_too():
    torch = pytest.importorskip("torch")
    assert parse_device(torch.device("cuda", 1)) == Device("cuda", 1)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "", "CUDA", "mps"])
def test_another_word_is_refused_with_those_there_are(name):
    with pytest.raises(UsageError, match="device must be cpu, cuda or cuda:N"):
        parse_device(name)


def test_a_device_that_is_not_there_is_told_what_is():
    assert absence(Device("cuda"), 1, "torch", "") is None
    assert absence(Device("cuda", 1), 2, "torch", "") is None
    assert absence(Device("cuda", 3), 2, "torch", "") == (
        "device 'cuda:3': this machine has 2 CUDA devices, counted from cuda:0"
    )
    assert absence(Device("cuda", 1), 1, "torch", "") == (
        "device 'cuda:1': this machine has one CUDA device, counted from cuda:0"
    )
    assert absence(Device("cuda"), 0, "torch", "no driver") == (
        "device 'cuda': this machine has no CUDA device that torch can use (no driver): use 'cpu'"
    )


def test_torch_says_why_it_has_none(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is built without CUDA" in str(torch_absence(Device("cuda")))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "CUDA_VISIBLE_DEVICES" in str(torch_absence(Device("cuda")))


# Rows: a table of what is there → what "auto" takes on a GPU, or what is said


@pytest.fixture
def machine(monkeypatch):
    """Pretend how many CUDA devices torch and the driver see; None where their backend is not installed."""

    def pretend(*, torch: int | None, cuda: int | None, capability: tuple[int, int] = (9, 0)) -> None:
        if torch:
            known = pytest.importorskip("torch").cuda
            monkeypatch.setattr(known, "get_device_capability", lambda device=None: capability)
        missing = "it needs torch: pip install it" if torch is None else None
        monkeypatch.setattr(triton.Triton, "missing", lambda self: missing)
        monkeypatch.setattr(
            triton, "torch_absence", lambda device: absence(device, torch or 0, "torch", "no driver")
        )
        of_cuda = {
            "cuda_missing": "built without nvcc" if cuda is None else None,
            "cuda_devices": lambda: [("H100", capability)] * (cuda or 0),
            "cuda_no_devices": lambda: "no NVIDIA driver was found",
            "CudaNetwork": FakeNetwork,
        }
        monkeypatch.setattr(cuda_backend, "_C", types.SimpleNamespace(**{**vars(_C), **of_cuda}))

    return pretend


@pytest.mark.parametrize(
    ("torch", "cuda", "chosen"),
    [(1, 1, "triton"), (1, None, "triton"), (None, 1, "cuda"), (0, 1, "cuda")],
)
def test_auto_takes_the_best_row_that_has_the_gpu(machine, torch, cuda, chosen):
    machine(torch=torch, cuda=cuda)
    assert backends.resolve("auto", Device("cuda")).name == chosen
    assert backends.resolve("auto").name == "cpu", "the CPU's rows are as they were"


@pytest.mark.parametrize(
    ("torch", "cuda", "device", "error", "said"),
    [
        (0, None, "cuda", UsageError, "^device 'cuda': this machine has no CUDA device that torch can use"),
        (2, 2, "cuda:3", UsageError, "^device 'cuda:3': this machine has 2 CUDA devices"),
        (
            None,
            None,
            "cuda",
            MissingExtra,
            "^device 'cuda': triton: it needs torch: .*; cuda: .*without nvcc",
        ),
        (
            None,
            0,
            "cuda",
            UsageError,
            r"no CUDA device that a CUDA driver can use \(no NVIDIA driver was found\)",
        ),
    ],
)
def test_a_gpu_that_nothing_can_use_is_never_replaced_by_the_cpu(machine, torch, cuda, device, error, said):
    machine(torch=torch, cuda=cuda)
    with pytest.raises(error, match=said):
        backends.resolve("auto", parse_device(device))


@pytest.mark.parametrize(
    ("name", "device", "said"),
    [
        ("cpu", "cuda", "backend 'cpu' computes on the CPU, not on device 'cuda'"),
        ("reference", "cuda:1", "backend 'reference' computes on the CPU, not on device 'cuda:1'"),
        ("cuda", "cpu", "backend 'cuda' computes on a GPU: choose device 'cuda'"),
        ("triton", "cuda:3", "device 'cuda:3': this machine has 2 CUDA devices"),
    ],
)
def test_a_backend_asked_for_by_name_computes_on_its_own_devices_only(machine, name, device, said):
    machine(torch=2, cuda=2)
    with pytest.raises(UsageError, match=said):
        backends.resolve(name, parse_device(device))


@pytest.mark.parametrize("name", ["triton", "cuda"])
def test_gpus_that_kernels_are_not_compiled_for_are_refused_in_a_sentence(machine, name):
    machine(torch=2, cuda=2, capability=(7, 5))
    said = f"backend '{name}' needs compute capability 8.0, device 'cuda:1' has 7.5: use 'cpu'"
    with pytest.raises(UsageError, match=said):
        backends.resolve(name, parse_device("cuda:1"))
    with pytest.raises(UsageError, match=r"needs compute capability 8\.0"):
        backends.resolve("auto", parse_device("cuda"))
    machine(torch=2, cuda=2, capability=(8, 0))
    assert backends.resolve(name, parse_device("cuda:1")).name == name


def test_tensors_on_gpus_that_kernels_are_not_compiled_for_are_refused_too(machine):
    torch = pytest.importorskip("torch")
    tensor: Any = types.SimpleNamespace(dtype=torch.float32, device=torch.device("cuda", 1))
    machine(torch=2, cuda=2, capability=(7, 5))
    assert triton.Triton().unfit_tensor(tensor) == "needs compute capability 8.0, cuda:1 has 7.5"
    machine(torch=2, cuda=2, capability=(8, 0))
    assert triton.Triton().unfit_tensor(tensor) is None


def test_operators_are_offered_by_the_rows_that_have_them():
    torch = pytest.importorskip("torch")
    assert backends.TRAINING_NAMES == ("auto", "triton", "cpu", "reference")
    assert [row.name for row in backends.TABLE if row not in backends.TRAINING] == ["cuda"]
    with pytest.raises(UsageError, match="unknown backend 'cuda': choose from auto, triton, cpu, reference"):
        backends.resolve_for("cuda", torch.zeros(1))
    assert backends.resolve_for("auto", torch.zeros(1, device="meta")).name == "reference"


def test_without_a_gpu_triton_says_how_it_can_run_all_the_same(monkeypatch):
    launch = pytest.importorskip("satclip_engine.kernels.launch")
    assert backends.resolve("triton").name == "triton", "under the interpreter"
    monkeypatch.setattr(launch, "interpreted", lambda: False)
    with pytest.raises(UsageError, match=r"choose device 'cuda', or set TRITON_INTERPRET=1 before the start"):
        backends.resolve("triton")


def test_a_gpu_that_is_not_there_is_refused_before_weights_are_read(machine):
    machine(torch=0, cuda=None)
    with pytest.raises(UsageError, match="no CUDA device"):
        se.load("nosuch.safetensors", device="cuda")


def test_another_precision_is_refused_by_name(tiny_weights):
    with pytest.raises(UsageError, match="precision must be exact or fast, not 'half'"):
        se.load(tiny_weights, precision="half")


# The row "cuda", on a network that the CPU computes


class FakeNetwork:
    """What _C.CudaNetwork promises: the last axis of what it fills is contiguous."""

    def __init__(self, degrees: int, weights: Any, biases: Any, precision: str, device: int) -> None:
        self.layers = Layers(degrees, tuple(weights), tuple(biases))
        self.precision, self.device = precision, device

    def encode_grid(self, lat: Any, lon: Any, out: Any, *, threads: int, check: Any) -> None:
        cpu.Cpu().prepare(self.layers).encode_grid(lat, lon, out, Call(threads, check))


def test_the_cuda_row_fills_grids_wherever_out_lies(machine, tiny_weights, tiny):
    machine(torch=None, cuda=2)
    enc = se.load(tiny_weights, device="cuda:1", precision="fast")
    grid = se.make_grid(resolution=30)
    expected = tiny.evaluate(grid)
    assert np.array_equal(enc.evaluate(grid), expected)
    wide = np.full((*grid.shape, 12), 7.0, np.float32)
    enc.evaluate(grid, out=wide[..., 2:10])
    assert np.array_equal(wide[..., 2:10], expected)
    assert (wide[..., [0, 1, 10, 11]] == 7).all()
    assert "backend cuda (cuda sm_90 fast) on cuda:1" in repr(enc)


def test_the_cuda_row_makes_wide_grids_by_parts_of_the_columns(machine, tiny_weights, tiny, monkeypatch):
    machine(torch=None, cuda=1)
    widths: list[int] = []
    fill = FakeNetwork.encode_grid

    def watched(self: FakeNetwork, lat: Any, lon: Any, out: Any, **options: Any) -> None:
        widths.append(len(lon))
        fill(self, lat, lon, out, **options)

    monkeypatch.setattr(FakeNetwork, "encode_grid", watched)
    monkeypatch.setattr(cuda_backend, "gpu_batch_hints", lambda embed_dim: BatchHints(5, 1 << 20))
    enc = se.load(tiny_weights, device="cuda")
    grid = se.make_grid(resolution=30)
    assert np.array_equal(enc.evaluate(grid), tiny.evaluate(grid))
    assert widths == [5, 5, 2]


def test_the_cuda_row_refuses_a_projected_raster_before_anything_is_made(machine, tiny_weights, tmp_path):
    machine(torch=None, cuda=1)
    enc = se.load(tiny_weights, device="cuda")
    projected = se.make_grid(resolution=1e6, bounds=(0, 0, 4e6, 4e6), crs=3857)
    with pytest.raises(UsageError, match="backend 'cuda' computes grids of rows of latitude only"):
        se.write_raster(enc, tmp_path / "out.tif", projected)
    assert not list(tmp_path.iterdir())


def test_the_cuda_row_says_what_embeds_single_places(machine, tiny_weights):
    machine(torch=None, cuda=1)
    with pytest.raises(MissingExtra, match=r'pip install "satclip-engine\[torch\]"'):
        se.load(tiny_weights, device="cuda")([[2.0, 48.0]])
