"""Nodes: the network's own values in any window, evaluated once for all threads, and kept a while."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from satclip_engine.backends.protocols import Call
from satclip_engine.lattice.nodes import BLOCK_COLUMNS, BLOCK_ROWS, EncodedNodes
from satclip_engine.lattice.zones import Zone, make_zones

WAIT = 20.0  # seconds after which a thread counts as hanging
GLOBE = (Zone(-90, 90, 160, 320, 8),)
ZONES = make_zones(0.9, 8)
CORNERS = st.tuples(st.integers(8, 110), st.integers(-400, 400), st.integers(1, 400))  # row, column, width
RELAXED = settings(deadline=None, max_examples=50)


class Counting:
    """A network of two bands, latitude and longitude, that notes what it is asked for."""

    def __init__(self, seconds: float = 0.0, failures: int = 0) -> None:
        self.embed_dim = 2
        self.seconds, self.failures = seconds, failures
        self.evaluated: Counter[tuple[float, float]] = Counter()
        self.calls, self.lock, self.gate = 0, threading.Lock(), threading.Event()
        self.gate.set()

    def encode_grid(self, lat, lon, out=None, call=None):
        with self.lock:
            self.calls += 1
            failing = self.calls <= self.failures
        time.sleep(self.seconds)
        assert self.gate.wait(WAIT)
        if failing:
            raise RuntimeError("the network has failed")
        with self.lock:
            self.evaluated.update((float(a), float(o)) for a in lat for o in lon)
        out[..., 0], out[..., 1] = lat[:, None], lon
        return out


def expected(zone: Zone, rows: range, columns: range) -> np.ndarray:
    """What Counting's nodes should be: latitudes and longitudes, mirrored beyond the poles."""
    lat, beyond = zone.node_lat(np.asarray(rows))
    lon = zone.node_lon(np.asarray(columns))
    out = np.empty((len(rows), len(columns), 2), np.float32)
    out[..., 0], out[..., 1] = lat[:, None], lon + 180.0 * beyond[:, None]
    return out


@st.composite
def windows(draw):
    """A zone of the globe and a window of it, maybe beyond a pole and over the antimeridian."""
    number = draw(st.integers(0, len(ZONES) - 1))
    reached = ZONES[number].row_range
    row = draw(st.integers(reached.start, reached.stop - 1))
    rows = range(row, min(row + draw(st.integers(1, 40)), reached.stop))
    column = draw(st.integers(-60, 2 * ZONES[number].columns))
    return number, rows, range(column, column + draw(st.integers(1, ZONES[number].columns + 50)))


@RELAXED
@given(windows())
def test_a_window_is_what_the_network_says(smooth, window):
    number, rows, columns = window
    found = EncodedNodes(smooth.network, ZONES).window(number, rows, columns)
    lat, beyond = ZONES[number].node_lat(np.asarray(rows))
    lon = ZONES[number].node_lon(np.asarray(columns))
    for k in range(len(rows)):
        exact = smooth.network.encode_grid(lat[k : k + 1], lon + 180.0 * beyond[k])
        assert np.array_equal(found[k], exact[0]), rows[k]
    assert np.abs(lat).max() <= 90


@RELAXED
@given(st.lists(CORNERS, min_size=1, max_size=4))
def test_no_node_is_evaluated_twice(corners):
    network = Counting()
    nodes = EncodedNodes(network, GLOBE)
    for row, column, width in corners:
        rows, columns = range(row, row + 40), range(column, column + width)
        for _ in range(2):
            assert np.array_equal(nodes.window(0, rows, columns), expected(GLOBE[0], rows, columns))
    assert max(network.evaluated.values()) == 1


def test_threads_that_ask_for_the_same_nodes_evaluate_them_once():
    network, random = Counting(seconds=0.002), np.random.default_rng(0)
    nodes = EncodedNodes(network, GLOBE)
    corners = [(int(r), int(c)) for r, c in random.integers((10, -100), (100, 300), (60, 2))]
    start = threading.Barrier(8)

    def ask(number: int) -> None:
        if number < 8:
            start.wait(WAIT)
        row, column = corners[number]
        rows, columns = range(row, row + 40), range(column, column + 70)
        assert np.array_equal(nodes.window(0, rows, columns), expected(GLOBE[0], rows, columns))

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(ask, number) for number in range(60)]:
            future.result(WAIT)
    assert max(network.evaluated.values()) == 1
    assert len(network.evaluated) > 10_000


def test_the_nodes_asked_for_latest_are_kept():
    network = Counting()
    nodes = EncodedNodes(network, GLOBE, cache_bytes=64 * 4 * BLOCK_ROWS * BLOCK_COLUMNS * network.embed_dim)

    def ask(block: int) -> int:
        """Ask for one block; how often the network was called for it."""
        before = network.calls
        row, column = divmod(block, 10)
        nodes.window(
            0,
            range(row * BLOCK_ROWS + 1, row * BLOCK_ROWS + 3),
            range(column * BLOCK_COLUMNS, column * BLOCK_COLUMNS + 2),
        )
        return network.calls - before

    assert sum(ask(block) for block in range(64)) == 64
    assert sum(ask(block) for block in range(64)) == 0
    assert ask(0) == 0  # now the latest
    assert ask(64) == 1  # takes the place of 1
    assert ask(0) == 0
    assert ask(1) == 1  # takes the place of 2
    assert ask(3) == 0
    assert ask(2) == 1


def test_a_window_larger_than_what_is_kept_is_whole():
    network = Counting()
    nodes = EncodedNodes(network, GLOBE, cache_bytes=1)
    rows, columns = range(0, 160), range(0, 320)  # 100 blocks
    assert np.array_equal(nodes.window(0, rows, columns), expected(GLOBE[0], rows, columns))


@pytest.mark.parametrize("failures", [1, 1000])
def test_a_failing_network_leaves_nobody_waiting(failures):
    network = Counting(seconds=0.05, failures=failures)
    nodes, results = EncodedNodes(network, GLOBE), []
    rows, columns = range(20, 28), range(40, 60)  # of one row of blocks

    def ask() -> None:
        try:
            results.append(nodes.window(0, rows, columns))
        except RuntimeError as error:
            results.append(str(error))

    asking = [threading.Thread(target=ask, daemon=True) for _ in range(6)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join(WAIT)
    assert not any(thread.is_alive() for thread in asking)
    failed = [result for result in results if isinstance(result, str)]
    assert len(results) == 6
    assert len(failed) == min(failures, 6), "who did not fail has the values"
    assert set(failed) == {"the network has failed"}
    network.failures = 0
    assert np.array_equal(nodes.window(0, rows, columns), expected(GLOBE[0], rows, columns))


def test_who_waits_for_another_threads_nodes_can_still_be_stopped():
    network = Counting()
    nodes, rows, columns = EncodedNodes(network, GLOBE), range(20, 28), range(40, 60)
    network.gate.clear()
    first = threading.Thread(target=nodes.window, args=(0, rows, columns), daemon=True)

    def stop() -> None:
        raise KeyboardInterrupt

    first.start()
    while not network.calls:
        time.sleep(0.001)
    with pytest.raises(KeyboardInterrupt):
        nodes.window(0, rows, columns, Call(check=stop))
    network.gate.set()
    first.join(WAIT)
    assert np.array_equal(nodes.window(0, rows, columns), expected(GLOBE[0], rows, columns))
    assert network.calls == 1
