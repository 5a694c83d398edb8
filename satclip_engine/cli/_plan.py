"""What `satclip-grid --plan` says: how a raster would be computed, why, how long, and how large it gets."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from satclip_engine.cli._report import lattice_lines, resolution_text
from satclip_engine.geo.crs import crs_name
from satclip_engine.progress import bytes_text, duration_text

if TYPE_CHECKING:
    from satclip_engine.cli.grid import Options
    from satclip_engine.encoder import Encoder
    from satclip_engine.geo.grid import Grid
    from satclip_engine.lattice.plan import Plan
    from satclip_engine.progress import Progress
    from satclip_engine.raster.size_estimate import Need


@dataclass(frozen=True)
class Outlook:
    """What was found without writing anything."""

    options: Options
    grid: Grid
    bands: int
    plan: Plan  # with seconds predicted for this machine
    need: Need
    threads: int


def look(options: Options, encoder: Encoder, grid: Grid, progress: Progress) -> Outlook:
    """Survey the raster and choose. Raises UsageError as writing it would."""
    from satclip_engine.lattice.choose import approximated
    from satclip_engine.lattice.plan import exact_plan, predicted
    from satclip_engine.lattice.sampling import region_of
    from satclip_engine.raster import size_estimate
    from satclip_engine.raster.request import Options as Asked
    from satclip_engine.raster.request import check_request
    from satclip_engine.raster.write import look_at

    asked = Asked(**options.written, overwrite=True, progress=progress)
    request = check_request(encoder, options.output, grid, asked)
    progress.stage("finding the range of every band")
    quantiser, chosen, network = look_at(request, progress.stage)
    cut, region = request.plan(), region_of(grid)
    need = size_estimate.estimate(network, approximated(network, grid), cut, quantiser, request.codec)
    plan = chosen or exact_plan(region, "as asked for")
    if encoder.plan is None:  # an atlas has no other way
        progress.stage("measuring this machine")
        plan = replace(plan, seconds=predicted(plan, encoder.network, region, cut.threads))
    return Outlook(options, grid, encoder.embed_dim, plan, need, cut.threads)


def as_json(outlook: Outlook) -> str:
    """One JSON object."""
    content: dict[str, Any] = {
        **outlook.plan.summary(),
        "shape": list(outlook.grid.shape),
        "bands": outlook.bands,
        "threads": outlook.threads,
        "file_bytes": outlook.need.file,
        "disk_bytes": outlook.need.peak,
    }
    return json.dumps(content, indent=2)


def as_text(outlook: Outlook) -> str:
    """For people, a line a subject."""
    plan, (height, width) = outlook.plan, outlook.grid.shape
    seconds = [f"{path} {duration_text(time)}" for path, time in plan.seconds.items()]
    lines = [
        (
            "grid",
            f"{width} x {height} pixels of {resolution_text(outlook.grid)}, {crs_name(outlook.grid.crs)}",
        ),
        ("path", plan.path),
        ("why", plan.reason),
        ("time", f"of pixels alone: {', '.join(seconds)} with {outlook.threads} threads" if seconds else ""),
        *lattice_lines(plan.summary()),
        (
            "size",
            f"about {bytes_text(outlook.need.file)}, {bytes_text(outlook.need.peak)} while it is written",
        ),
    ]
    head = f"{outlook.options.output} is not written; it would be:"
    return "\n".join([head, *(f"  {name:<8} {text}" for name, text in lines if text)])
