"""Fixtures that several test files share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

# Workers of pytest-xdist share the cores. OpenMP and BLAS read this when they are loaded: without it threads
# of one worker spin while those of another compute.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    cores_per_worker = (os.cpu_count() or 1) // workers
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores_per_worker)))

import numpy as np
import pytest
from factories.interpreter import patch_language_once

from satclip_engine.encoder import Encoder, load
from satclip_engine.weights import LocationWeights

TESTS = Path(__file__).parent
# Minutes in one fixture or test: they come first, so that no worker is left alone with one at the end, and a
# fixture's tests stay with one worker. Workers take the head of the list, and from each other the tail.
LONG = (
    "project/test_packaging.py",
    "benchmarks/test_gpu_check.py",
    "kernels/tools",
    "kernels/test_rounding.py",
    "test_contrast_shared.py",
    "training/test_ranks.py",
    "training/test_unfreeze.py",
)

os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton: kernels run on the CPU

# A shell's background jobs ignore Ctrl-C, and their children inherit that: tests that press it need it heard.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long tests first."""
    items.sort(
        key=lambda item: next((rank for rank, path in enumerate(LONG) if is_in(item, path)), len(LONG))
    )


def is_in(item: pytest.Item, path: str) -> bool:
    """True where the test lies in this file or folder of tests."""
    return item.path.is_relative_to(TESTS / path)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Prepare Triton's interpreter for tests that need it."""
    if item.get_closest_marker("triton") is not None:
        patch_language_once()


@pytest.fixture(scope="session")
def tiny_weights() -> LocationWeights:
    """L = 4, two hidden layers of 16, 8 outputs; random, with every harmonic in use."""
    rng = np.random.default_rng(7)
    degrees, hidden, outputs = 4, 16, 8
    tensors = {
        "layers.0.weight": rng.normal(0, 0.05, (hidden, degrees**2)),
        "layers.0.bias": rng.normal(0, 0.05, hidden),
        "layers.1.weight": rng.normal(0, 0.4, (hidden, hidden)),
        "layers.1.bias": rng.normal(0, 0.4, hidden),
        "last_layer.weight": rng.normal(0, 0.5, (outputs, hidden)),
        "last_layer.bias": rng.normal(0, 0.5, outputs),
    }
    return LocationWeights(tensors, "orthonormal")


@pytest.fixture(scope="session")
def tiny(tiny_weights: LocationWeights) -> Encoder:
    """An Encoder that takes microseconds a point."""
    return load(tiny_weights, threads=2)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what is measured of the machine with the tests, not in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
