"""`satclip-grid --plan`: forecast of a raster's path, reason, time and size, without writing it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from satclip_engine.cli._report import lattice_lines, resolution_text
from satclip_engine.geo.crs import crs_name
from satclip_engine.progress import duration_text, size_text

if TYPE_CHECKING:
    from satclip_engine.cli._options import CommandLine
    from satclip_engine.encoder import Encoder
    from satclip_engine.geo.grid import Grid
    from satclip_engine.lattice.plan import Plan
    from satclip_engine.progress import Progress
    from satclip_engine.raster.size_estimate import DiskEstimate


@dataclass(frozen=True)
class RasterForecast:
    """Plan and size of a raster that is not written."""

    options: CommandLine
    grid: Grid
    bands: int
    plan: Plan  # with seconds predicted for this machine
    disk: DiskEstimate
    threads: int


def forecast(options: CommandLine, encoder: Encoder, grid: Grid, progress: Progress) -> RasterForecast:
    """Choose the plan and estimate the size. Raises UsageError as writing the raster would."""
    from satclip_engine.lattice.choose import approximated
    from satclip_engine.lattice.plan import exact_plan, predicted
    from satclip_engine.lattice.sampling import region_of
    from satclip_engine.raster.cog import head_bytes
    from satclip_engine.raster.request import check_request
    from satclip_engine.raster.size_estimate import estimate_disk
    from satclip_engine.raster.write import fit_and_plan, raster_ifds

    raster = replace(options.raster, overwrite=True, resume=False, progress=progress)
    request = check_request(encoder, options.output, grid, raster)
    progress.stage("finding the range of every band")
    quantiser, chosen, network = fit_and_plan(request, progress.stage)
    tiling, region = request.tiling, region_of(grid)
    head = head_bytes(raster_ifds(request, tiling, quantiser, chosen))
    disk = estimate_disk(network, approximated(network, grid), tiling, quantiser, request.codec, head)
    plan = chosen or exact_plan(region, "as asked for")
    if encoder.plan is None:  # an atlas has no other way
        progress.stage("measuring this machine")
        plan = replace(plan, seconds=predicted(plan, encoder.network, region, tiling.threads))
    return RasterForecast(options, grid, encoder.embed_dim, plan, disk, tiling.threads)


def as_json(forecast: RasterForecast) -> str:
    """One JSON object."""
    content: dict[str, Any] = {
        **forecast.plan.summary(),
        "shape": list(forecast.grid.shape),
        "bands": forecast.bands,
        "threads": forecast.threads,
        "file_bytes": forecast.disk.file,
        "disk_bytes": forecast.disk.peak,
    }
    return json.dumps(content, indent=2)


def as_text(forecast: RasterForecast) -> str:
    """For people, a line a subject."""
    plan, disk, (height, width) = forecast.plan, forecast.disk, forecast.grid.shape
    seconds = [f"{path} {duration_text(time)}" for path, time in plan.seconds.items()]
    lines = [
        (
            "grid",
            f"{width} x {height} pixels of {resolution_text(forecast.grid)}, {crs_name(forecast.grid.crs)}",
        ),
        ("path", plan.path),
        ("why", plan.reason),
        ("time", f"of pixels alone: {', '.join(seconds)} with {forecast.threads} threads" if seconds else ""),
        *lattice_lines(plan.summary()),
        ("size", f"about {size_text(disk.file)} ({size_text(disk.peak)} of disk while it is written)"),
    ]
    head = f"{forecast.options.output} is not written; it would be:"
    return "\n".join([head, *(f"  {name:<8} {text}" for name, text in lines if text)])
