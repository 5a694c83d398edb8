"""`satclip-grid --plan`: forecast of a raster's path, reason, time and size, without writing it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from satclip_engine.cli._report import for_programs, lattice_lines, resolution_text, summary
from satclip_engine.geo.crs import crs_name
from satclip_engine.progress import duration_text, size_text

if TYPE_CHECKING:
    from satclip_engine.cli._options import CommandLine
    from satclip_engine.encoder import Encoder
    from satclip_engine.geo.grid import Grid
    from satclip_engine.lattice.plan import Plan
    from satclip_engine.progress import Progress
    from satclip_engine.raster.size_estimate import DiskEstimate


ASSEMBLY_RATE = 1e9  # bytes per second: tiles are copied from the spool, mostly in the page cache
PICTURE_BYTES = 300_000_000  # that drawing the picture takes


@dataclass(frozen=True)
class RasterForecast:
    """Plan, time, memory and size of a raster that is not written."""

    options: CommandLine
    grid: Grid
    bands: int
    plan: Plan  # with seconds predicted for this machine
    disk: DiskEstimate
    blocksize: int
    threads: int
    memory: int  # bytes: all that this process will hold
    survey_seconds: float  # of choosing the plan, which the run does again

    @property
    def seconds(self) -> float:
        """Seconds of the whole run; the picture not counted."""
        pixels = self.plan.seconds.get(self.plan.path, 0.0)
        packing = self.disk.packing_seconds / self.threads
        return self.survey_seconds + pixels + packing + self.disk.file / ASSEMBLY_RATE


def forecast(options: CommandLine, encoder: Encoder, grid: Grid, progress: Progress) -> RasterForecast:
    """Choose the plan and estimate time, memory and size. Raises UsageError as writing the raster would."""
    from satclip_engine.lattice.choose import approximated
    from satclip_engine.lattice.plan import exact_plan, predicted
    from satclip_engine.lattice.sampling import region_of
    from satclip_engine.raster.report import peak_memory
    from satclip_engine.raster.request import check_request
    from satclip_engine.raster.write import fit_and_plan, raster_disk, shared_bytes

    started = time.perf_counter()
    raster = replace(options.raster, overwrite=True, resume=False, progress=progress)
    request = check_request(encoder, options.output or Path("raster.tif"), grid, raster)
    progress.stage("finding the range of every band")
    quantiser, chosen, network = fit_and_plan(request, progress.stage)
    shared = shared_bytes(chosen, raster.memory)
    tiling, region = request.tiling_beside(shared), region_of(grid)
    disk = raster_disk(request, tiling, quantiser, chosen, network, approximated(network, grid))
    plan = chosen or exact_plan(region, "as asked for")
    survey_seconds = time.perf_counter() - started
    # The lattice's nodes are held as far as they fit into their share of the memory.
    nodes = min(shared, 4 * plan.nodes * encoder.embed_dim)
    picture = 0 if options.no_preview else PICTURE_BYTES
    memory = peak_memory() + max(tiling.memory + nodes, picture)
    if encoder.plan is None:  # an atlas has no other way
        progress.stage("measuring this machine")
        plan = replace(plan, seconds=predicted(plan, encoder.network, region, tiling.threads))
    return RasterForecast(
        options,
        grid,
        encoder.embed_dim,
        plan,
        disk,
        request.blocksize,
        tiling.threads,
        memory,
        survey_seconds,
    )


def as_json(forecast: RasterForecast) -> str:
    """One JSON object, its words those of the report of a run."""
    options, plan = forecast.options, forecast.plan.summary()
    content: dict[str, Any] = {
        "path": None if options.output is None else str(options.output),
        "shape": list(forecast.grid.shape),
        "bands": forecast.bands,
        "dtype": options.raster.dtype,
        "compress": options.raster.compress,
        "blocksize": forecast.blocksize,
        "interleave": options.raster.interleave,
        "threads": forecast.threads,
        "seconds": forecast.seconds,
        "pixel_seconds": plan.pop("seconds"),
        "peak_memory": forecast.memory,
        "bytes": forecast.disk.file,
        "disk_estimate": forecast.disk.peak,
        "reconstruction": plan,
    }
    return for_programs(content, options.as_json)


def as_text(forecast: RasterForecast) -> str:
    """For people, a line a subject."""
    plan, disk, (height, width) = forecast.plan, forecast.disk, forecast.grid.shape
    raster, threads = forecast.options.raster, f"{forecast.threads} thread{'s' * (forecast.threads > 1)}"
    seconds = [f"{path} {duration_text(pixel_time)}" for path, pixel_time in plan.seconds.items()]
    pixels = f"; pixels alone: {', '.join(seconds)}" if seconds else ""
    lines = [
        (
            "grid",
            f"{width} x {height} pixels of {resolution_text(forecast.grid)}, {crs_name(forecast.grid.crs)}",
        ),
        ("bands", f"{forecast.bands}, {raster.dtype}, {raster.compress}"),
        ("path", plan.path),
        ("why", plan.reason),
        ("time", f"about {duration_text(forecast.seconds)} with {threads}{pixels}"),
        *lattice_lines(plan.summary()),
        ("memory", f"up to {size_text(forecast.memory)}"),
        ("size", f"about {size_text(disk.file)} ({size_text(disk.peak)} of disk while it is written)"),
    ]
    name = "The raster" if forecast.options.output is None else forecast.options.output
    return summary(f"{name} is not written; it would be:", lines)
