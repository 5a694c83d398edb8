"""Chooses how a prepared network evaluates a raster or a list of points, and keeps the latest choices."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from satclip_engine._forks import Mutex
from satclip_engine.backends.buffers import touch
from satclip_engine.backends.extremes import Extremes
from satclip_engine.backends.protocols import Call, Check, Prepared
from satclip_engine.errors import refuse_both
from satclip_engine.geo.grid import Grid
from satclip_engine.geo.pixels import PixelGrid
from satclip_engine.lattice import convergence
from satclip_engine.lattice.cost import rates_of
from satclip_engine.lattice.plan import MIN_POINTS, Plan, Probe, can_pay, exact_plan, make_plan
from satclip_engine.lattice.prepared import PreparedLattice
from satclip_engine.lattice.sampling import SamplingRegion, region_of
from satclip_engine.lattice.threads import run_items
from satclip_engine.lattice.tolerance import Moments, check_tolerance, moments, tolerance_of
from satclip_engine.lattice.transform import ApproximatedGrid

_CHUNK_POINTS = 1 << 20  # that a thread takes at once; the same whatever the number of threads
_MAX_PLANS = 8  # of a network, and as many results of the convergence probe
_EXACT_BACKENDS = {
    "reference": "backend 'reference' is the definition and never interpolates",
    "cuda": "backend 'cuda' computes grids only, and measuring errors takes single points",
}


def check_options(*, exact: bool, tolerance: float | None) -> None:
    """Raise UsageError for a tolerance that is none, and for both together."""
    check_tolerance(tolerance)
    refuse_both(exact=exact, tolerance=tolerance)


def choose(
    network: Prepared,
    moments: Callable[[], Moments],
    pixels_or_points: PixelGrid | np.ndarray,
    *,
    threads: int,
    exact: bool = False,
    tolerance: float | None = None,
    step: np.ndarray | None = None,
    dtype: str = "float32",
    cache_bytes: int | None = None,
    positions: int | None = None,
    probe: Probe | None = None,
) -> tuple[Plan, Prepared]:
    """The best plan for a grid's pixels or (n, 2) points, and what computes by it.

    moments: of the network's bands; called where a tolerance follows from them.
    exact: never interpolate. tolerance: in σ of each band; default 1/8 of each band's `step` when numbers of
        a `dtype` are stored in such steps, else 1e-4. positions: where the error is measured; default by the
        number of points. cache_bytes, probe: as `make_plan` has them.

    Raises UsageError for exact and tolerance together, and for a tolerance that float32 cannot keep.
    """
    check_options(exact=exact, tolerance=tolerance)
    region = region_of(pixels_or_points)
    if reason := _exact_reason(network, region, exact, tolerance):
        return exact_plan(region, reason), network
    return make_plan(
        network,
        region,
        tolerance_of(moments(), tolerance, step=step, dtype=dtype),
        threads=threads,
        cache_bytes=cache_bytes,
        positions=positions,
        probe=probe,
    )


def _exact_reason(
    network: Prepared, region: SamplingRegion, exact: bool, tolerance: float | None
) -> str | None:
    """Reason why everything is evaluated, as far as that takes no evaluation to tell."""
    if exact:
        return "as asked for"
    if reason := _EXACT_BACKENDS.get(network.name):
        return reason
    if tolerance is None and region.count < MIN_POINTS:
        return f"fewer than {MIN_POINTS:,} points"
    return None


def approximated(network: Prepared, pixels: PixelGrid) -> PixelGrid:
    """The pixels as a network evaluates them: a projected Grid's locations are interpolated for a lattice."""
    if isinstance(network, PreparedLattice) and isinstance(pixels, Grid) and not pixels.separable:
        return ApproximatedGrid(pixels)
    return pixels


def encode_points(network: Prepared, points: np.ndarray, out: np.ndarray, *, fresh: bool = True) -> None:
    """Embed (n, 2) points into memory, which may be fresh from the system.

    Where few of them share a square of the lattice, they are evaluated one by one.
    """
    if not isinstance(network, PreparedLattice):
        network.encode(points, out)
        return
    nodes_per_point = 0.0  # without a network, square by square no more is read than it must be
    if network.network is not None:
        rates = rates_of(network.network)
        nodes_per_point = rates.points / rates.grid
    if fresh:
        touch(out)
    chunks = [slice(begin, begin + _CHUNK_POINTS) for begin in range(0, len(points), _CHUNK_POINTS)]

    def fill(chunk: slice, threads: int, check: Check | None) -> None:
        share = len(points[chunk]) / len(points)  # other chunks have as many points in a square
        network.encode(
            points[chunk],
            out[chunk],
            Call(threads, check),
            pays=lambda count, nodes: count > nodes_per_point * share * nodes,
        )

    if len(chunks) == 1:  # it can use all threads itself, and hear Ctrl-C in this one
        fill(chunks[0], network.threads, None)
    else:
        run_items(chunks, lambda chunk, stop: fill(chunk, 1, stop), network.threads)


_Value = TypeVar("_Value")


@dataclass(eq=False)
class _Slot(Generic[_Value]):
    """A value that is made once, under its lock."""

    lock: Mutex = field(default_factory=Mutex)
    value: _Value | None = None


class _Slots(Generic[_Value]):
    """LRU cache of slots. Threads may share it."""

    def __init__(self) -> None:
        self._slots: OrderedDict[Hashable, _Slot[_Value]] = OrderedDict()
        self._lock = Mutex()

    def slot(self, key: Hashable) -> _Slot[_Value]:
        with self._lock:
            slot = self._slots.setdefault(key, _Slot())
            self._slots.move_to_end(key)
            while len(self._slots) > _MAX_PLANS:
                self._slots.popitem(last=False)
            return slot

    def value(self, key: Hashable) -> _Value | None:
        """The value if it is made already."""
        with self._lock:
            slot = self._slots.get(key)
            return None if slot is None else slot.value


class Planner:
    """Chooses for one network, and keeps its latest plans for rasters. Threads may share it."""

    def __init__(self, network: Prepared, threads: int, find_extremes: Callable[[int], Extremes]) -> None:
        """find_extremes: of the network's bands over the globe, with so many threads."""
        self.network, self.threads, self._find_extremes = network, threads, find_extremes
        self._moments: _Slot[Moments] = _Slot()
        self._extremes: _Slot[Extremes] = _Slot()
        self.clear()

    def clear(self) -> None:
        """Drop all plans, so that the next ones are made anew, as when they are timed."""
        # What computes by a plan holds the nodes it evaluated, up to the cache's 256 MB: it lives as long as
        # somebody uses it, the plan, which costs seconds and holds next to nothing, as long as the encoder.
        self._plans: _Slots[tuple[Plan, weakref.ref[Prepared] | None]] = _Slots()
        self._convergence: _Slots[convergence.Convergence] = _Slots()

    def moments(self) -> Moments:
        """σ and rms of every band over the globe."""
        with self._moments.lock:
            if self._moments.value is None:
                self._moments.value = moments(self.network, self.threads)
            return self._moments.value

    def extremes(self) -> Extremes:
        """Least and largest value of every band over the globe."""
        with self._extremes.lock:
            if self._extremes.value is None:
                self._extremes.value = self._find_extremes(self.threads)
            return self._extremes.value

    def choose(
        self,
        pixels_or_points: PixelGrid | np.ndarray,
        *,
        exact: bool = False,
        tolerance: float | None = None,
        step: np.ndarray | None = None,
        dtype: str = "float32",
        cache_bytes: int | None = None,
        positions: int | None = None,
    ) -> tuple[Plan, Prepared]:
        """As `choose`; the same plan as before for the same raster and options."""

        def make() -> tuple[Plan, Prepared]:
            return choose(
                self.network,
                self.moments,
                pixels_or_points,
                threads=self.threads,
                exact=exact,
                tolerance=tolerance,
                step=step,
                dtype=dtype,
                cache_bytes=cache_bytes,
                positions=positions,
                probe=self._probe,
            )

        check_options(exact=exact, tolerance=tolerance)
        if isinstance(pixels_or_points, np.ndarray) or exact:
            return make()
        slot = self._plans.slot(_key(pixels_or_points, tolerance, step, dtype, positions))
        with slot.lock:
            if slot.value is None:
                plan, prepared = make()
            elif cache_bytes is None:
                return slot.value[0], self._shared(slot, slot.value[0])
            else:
                plan = slot.value[0]
                return plan, plan.prepare(self.network, cache_bytes)
            # Nodes in a cache of their own are for the job that asked for them.
            slot.value = plan, weakref.ref(prepared) if cache_bytes is None else None
            return plan, prepared

    def decided(self, pixels: PixelGrid, *, exact: bool, tolerance: float | None) -> Plan | None:
        """An exact plan where that takes no evaluation of the raster to tell; the same for the same raster.

        Raises UsageError for a tolerance that float32 cannot keep.
        """
        region = region_of(pixels)
        if reason := _exact_reason(self.network, region, exact, tolerance):
            return exact_plan(region, reason)
        if tolerance is not None:
            tolerance_of(self.moments(), tolerance)
            if reason := _exact_reason(self.network, region, exact, None):
                return exact_plan(region, reason)
        return None if can_pay(self.network, region) else exact_plan(region, "no lattice would save enough")

    def cached_plan(
        self, pixels: PixelGrid, *, tolerance: float | None, positions: int | None
    ) -> Plan | None:
        """The plan of a raster that `choose` has made already."""
        value = self._plans.value(_key(pixels, tolerance, None, "float32", positions))
        return None if value is None else value[0]

    def share(
        self, plan: Plan, pixels: PixelGrid, *, tolerance: float | None, positions: int | None
    ) -> Prepared:
        """Prepare for a raster's plan that was made already, perhaps by another process; once for all."""
        slot = self._plans.slot(_key(pixels, tolerance, None, "float32", positions))
        with slot.lock:
            if slot.value is not None and slot.value[0].token != plan.token:
                return plan.prepare(self.network)  # made on another kind of processor
            return self._shared(slot, plan if slot.value is None else slot.value[0])

    def _shared(self, slot: _Slot[tuple[Plan, weakref.ref[Prepared] | None]], plan: Plan) -> Prepared:
        """The one that all users of a plan share, prepared if nobody has it; the caller holds the slot."""
        reference = None if slot.value is None else slot.value[1]
        prepared = None if reference is None else reference()
        if prepared is None:
            prepared = plan.prepare(self.network)
            slot.value = plan, weakref.ref(prepared)
        return prepared

    def _probe(self, points: np.ndarray, tolerance: np.ndarray) -> convergence.Convergence:
        slot = self._convergence.slot((points.tobytes(), tolerance.tobytes()))
        with slot.lock:
            if slot.value is None:
                slot.value = convergence.measure(self.network, points, tolerance, self.threads)
            return slot.value


def _key(
    pixels: PixelGrid, tolerance: float | None, step: np.ndarray | None, dtype: str, positions: int | None
) -> Hashable:
    """All that decides a plan beside the network."""
    if tolerance is None and step is not None:
        return pixels.__dask_tokenize__(), dtype, np.asarray(step, np.float64).tobytes(), positions
    return pixels.__dask_tokenize__(), tolerance, positions
