"""An Encoder made to compute by a plan: what callers of other modules use of this package."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from satclip_engine.backends.buffers import touch
from satclip_engine.backends.protocols import Check
from satclip_engine.errors import refuse_both
from satclip_engine.geo.grid import Grid
from satclip_engine.geo.pixels import PixelGrid
from satclip_engine.lattice.cost import rates_of
from satclip_engine.lattice.plan import LEAST, exact_plan, make_plan
from satclip_engine.lattice.prepared import PreparedLattice
from satclip_engine.lattice.sampling import region_of
from satclip_engine.lattice.threads import run_parts
from satclip_engine.lattice.tolerance import check_tolerance, tolerance_of
from satclip_engine.lattice.transform import ApproximatedGrid
from satclip_engine.quantize import Quantiser

if TYPE_CHECKING:
    from satclip_engine.encoder import Encoder

_PART = 1 << 20  # places that a thread takes at once; the same whatever the number of threads
_AT_ONCE = 64 << 20  # bytes of float32 that become codes at once
_NEVER = {
    "reference": "backend 'reference' is the definition and never interpolates",
    "cuda": "backend 'cuda' computes grids only, and measuring errors takes single places",
}


def planned(
    encoder: Encoder,
    places: PixelGrid | np.ndarray,
    *,
    exact: bool = False,
    tolerance: float | None = None,
    step: np.ndarray | None = None,
    dtype: str = "float32",
    cache_bytes: int | None = None,
    positions: int | None = None,
) -> Encoder:
    """The encoder by the best plan for these places, a grid's or (n, 2) listed ones.

    exact: never interpolate. tolerance: in σ of each band; default 1/8 of each band's `step` when numbers of
        a `dtype` are stored in such steps, else 1e-4. positions: where the error is measured; default by the
        number of places.
    An encoder that has a plan already, such as an atlas, keeps it. Raises UsageError for both together, and
    for a tolerance that float32 cannot keep.
    """
    check_tolerance(tolerance)
    refuse_both(exact=exact, tolerance=tolerance)
    if encoder.plan is not None:
        encoder.plan.check(exact=exact, tolerance=tolerance)
        return encoder
    region = region_of(places)
    if exact:
        return encoder.by_plan(exact_plan(region, "as asked for"))
    if reason := _NEVER.get(encoder.backend):
        return encoder.by_plan(exact_plan(region, reason))
    if tolerance is None and region.count < LEAST:
        return encoder.by_plan(exact_plan(region, f"fewer than {LEAST:,} places"))
    wanted = tolerance_of(encoder.moments, tolerance, step=step, dtype=dtype)
    plan, network = make_plan(
        encoder.network,
        region,
        wanted,
        threads=encoder.threads,
        cache_bytes=cache_bytes,
        positions=positions,
    )
    return encoder.by_plan(plan, network)


def placed(encoder: Encoder, grid: PixelGrid) -> PixelGrid:
    """The grid as the encoder's plan places its pixels: exactly, or by an interpolated transform."""
    interpolates = encoder.plan is not None and encoder.plan.interpolates
    return ApproximatedGrid(grid) if interpolates and isinstance(grid, Grid) and not grid.separable else grid


def encode_many(encoder: Encoder, points: np.ndarray, out: np.ndarray, *, fresh: bool = True) -> None:
    """Embed (n, 2) places into memory, which may be fresh from the system.

    Where few of them share a square of the lattice, they are evaluated one by one.
    """
    network = encoder.network
    if not isinstance(network, PreparedLattice):
        network.encode(points, out=out)
        return
    each = 0.0  # of an atlas, which has no network; square by square it reads no more than it must
    if network.name != "atlas":
        rates = rates_of(network.network)
        each = rates.points / rates.grid
    if fresh:
        touch(out)
    parts = [slice(begin, begin + _PART) for begin in range(0, len(points), _PART)]

    def fill(part: slice, threads: int, check: Check | None) -> None:
        share = len(points[part]) / len(points)  # other parts have as many places in a square
        network.encode(
            points[part],
            out=out[part],
            threads=threads,
            check=check,
            enough=lambda places, nodes: places > each * share * nodes,
        )

    if len(parts) == 1:  # it can use all threads itself, and hear Ctrl-C in this one
        fill(parts[0], encoder.threads, None)
    else:
        run_parts(parts, lambda part, stop: fill(part, 1, stop), encoder.threads)


def fill_codes(encoder: Encoder, places: PixelGrid, out: np.ndarray, quantiser: Quantiser) -> None:
    """Fill (H, W, E) int8 or int16 memory with the codes of all pixels."""
    assert quantiser.offset is not None
    quantise = (quantiser.inverse_scale, quantiser.offset.astype(np.float32))
    network, threads = encoder.network, encoder.threads
    if isinstance(network, PreparedLattice) and isinstance(places, ApproximatedGrid):
        places.evaluate(network, None, None, out, threads, None, quantise)
        return
    if isinstance(network, PreparedLattice) and places.separable:
        network.encode_grid(places.lat(), places.lon(), out=out, threads=threads, quantise=quantise)
        return
    step = max(1, _AT_ONCE // (4 * out.shape[1] * out.shape[2]))
    for top in range(0, out.shape[0], step):
        rows = slice(top, min(top + step, out.shape[0]))
        out[rows] = quantiser.encode(encoder.evaluate(places, rows))
