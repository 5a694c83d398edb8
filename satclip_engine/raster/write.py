"""write_raster: a grid's embeddings as a Cloud-Optimized GeoTIFF, in bounded memory, able to go on later.

    survey (ranges, size) ─► superblocks by worker threads ─► spool ─► assembled file ─► checked ─► its name

Nothing is ever visible under the output's name but the finished file. What is unfinished lies in the spool, a
folder beside it (`spool.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from satclip_engine._version import __version__
from satclip_engine.backends.protocols import Prepared
from satclip_engine.errors import OutputError
from satclip_engine.geo.pixels import PixelGrid
from satclip_engine.lattice.choose import approximated
from satclip_engine.lattice.nodes import CACHE_BYTES
from satclip_engine.lattice.plan import EXACT_TAGS
from satclip_engine.lattice.plan import Plan as LatticePlan
from satclip_engine.quantize import Quantiser, Tally, find_quantiser
from satclip_engine.raster import cog, size_estimate
from satclip_engine.raster.build import (
    Clock,
    EncoderSource,
    Job,
    RemainderSource,
    Source,
    Worker,
    remainder_bytes,
    run_units,
)
from satclip_engine.raster.output import (
    STATE_DOMAIN,
    STATE_NAME,
    check_path,
    differences,
    disk_errors,
    publish,
    recorded_state,
    size_text,
)
from satclip_engine.raster.report import Report, clipping, largest_error, peak_memory
from satclip_engine.raster.request import Options, Progress, Request, Silent, check_request
from satclip_engine.raster.spool import (
    Spool,
    empty_folder,
    locked_folder,
    read_state,
    remainder_file,
    remove_folder,
    spool_folder,
    write_state,
)
from satclip_engine.raster.tiling import Plan, Tier, Unit, pyramid

if TYPE_CHECKING:
    from satclip_engine.encoder import Encoder

__all__ = ["Progress", "Report", "write_raster"]


def write_raster(
    enc: Encoder,
    path: str | os.PathLike[str],
    grid: Any,
    *,
    dtype: str = "int8",
    compress: str = "zstd",
    blocksize: int | None = None,
    threads: int | None = None,
    memory: int = 1 << 30,
    exact: bool = False,
    tolerance: float | None = None,
    overwrite: bool = False,
    resume: bool = False,
    tags: dict[str, str] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Write the embeddings of a grid's pixels as a Cloud-Optimized GeoTIFF, one band a dimension.

    enc: Encoder. path: of the file; until it is complete its spool `.NAME.satclip-spool` lies beside it.
    grid: Grid, odc-geo GeoBox, xarray object or raster file whose pixels are taken. An embedding has to be
        this encoder's own, of all its bands.
    dtype: int8 or int16 with scale and offset per band, float16 or float32. Pixels that are no place on Earth
        are nodata.
    compress: zstd, deflate, lerc or none. blocksize: pixels along a tile's side, a multiple of 16; default
        the smallest of 64, 128, 256 and 512 with which the file has at most two million tiles.
    threads: how many work; default the encoder's. memory: bytes that they may take together, the
        interpreter's own not counted; fewer threads work when it is short.
    exact, tolerance: a raster finer than the field is interpolated from a lattice of it, and the error
        measured: at most `tolerance` σ of each band, default an eighth of a quantisation step (floats: 1e-4
        σ). What was found is in the report and in the file's tags. `exact` never interpolates.
    overwrite: replace an existing file when the new one is complete. resume: go on from what an interrupted
        run of the same raster left, or return at once when it is finished; starts afresh when there is
        nothing.
    tags: metadata of the file. progress: told start(total_pixels), advance(pixels), stage(text) and finish().

    Overviews are means of the valid values of 2×2 pixels, taken before quantising. The file's bytes depend on
    none of threads, memory and interruptions. Raises UsageError for arguments that cannot be used,
    OutputError when the file cannot be written or an interrupted run differs from this one. After
    KeyboardInterrupt, a full disk or a crash the spool is kept.
    """
    started = time.perf_counter()
    options = Options(
        dtype=dtype,
        compress=compress,
        blocksize=blocksize,
        threads=threads,
        memory=memory,
        exact=exact,
        tolerance=tolerance,
        overwrite=overwrite,
        resume=resume,
        tags=dict(tags or {}),
        progress=progress or Silent(),
    )
    request = check_request(enc, Path(path), grid, options)
    try:
        if resume and _is_finished(request):
            _remove_leftovers(spool_folder(request.path))
            return _finished_report(request, started)
        with disk_errors(request.path), locked_folder(spool_folder(request.path)) as folder:
            return _Run(request, folder, started).run()
    finally:
        options.progress.finish()


def _is_finished(request: Request) -> bool:
    """Whether the file at the output's name is what was asked for. Raises OutputError when it is another."""
    if not request.path.exists():
        return False
    recorded = recorded_state(request.path)
    if recorded is not None and not differences(recorded, request.state):
        return True
    if _replaces(spool_folder(request.path)):
        return False
    if recorded is None:
        raise OutputError(f"{request.path} exists and is no raster of this kind: there is nothing to resume")
    raise OutputError(f"{request.path} is finished, but it differs: {differences(recorded, request.state)}")


def _remove_leftovers(folder: Path) -> None:
    """Remove the spool of a run that was stopped after it had named its file."""
    if folder.exists():
        with contextlib.suppress(OSError), locked_folder(folder):
            remove_folder(folder)


def _replaces(folder: Path) -> bool:
    """Whether the interrupted run that left this spool was to replace an existing file."""
    return bool((read_state(folder) or {}).get("overwrite"))


def cache_bytes(memory: int) -> int:
    """How much of the memory allowed holds nodes of a lattice."""
    return min(CACHE_BYTES, memory // 4)


def look_at(request: Request, stage: Callable[[str], None]) -> tuple[Quantiser, LatticePlan | None, Prepared]:
    """The ranges of a raster's bands, the plan that is best for it, and what computes by it.

    No plan: exact as asked for, without having looked for better.
    """
    encoder, options = request.encoder, request.options
    quantiser = find_quantiser(encoder.network, request.grid, request.sample, request.plan().threads)
    if options.exact:
        return quantiser, None, encoder.network
    stage("looking how smooth the field is")
    plan, network = encoder.choose(
        request.grid,
        tolerance=options.tolerance,
        step=quantiser.scale,
        dtype=request.sample.name,
        cache_bytes=cache_bytes(options.memory),
    )
    return quantiser, plan, network


class _Run:
    """One run, from the survey to the finished file, while its spool is locked."""

    def __init__(self, request: Request, folder: Path, started: float) -> None:
        self.request, self.folder, self.started = request, folder, started
        self.network, self.places = request.encoder.network, cast(PixelGrid, request.grid)
        self.lattice: LatticePlan | None = None  # None: exact, without having looked for better
        self.progress = request.options.progress
        self.clock = Clock()
        self.stages: dict[str, float] = {}
        self.computed = 0  # pixels, in this run

    def run(self) -> Report:
        try:
            spool, plan, quantiser, need = self._begin()
        except BaseException:
            if not self._has_finished_work():
                remove_folder(self.folder)
            raise
        try:
            before = self._finished_part(plan, spool)
            with self._timed("tiles"):
                self._build(plan, quantiser, spool)
            tally = self._tally(spool, plan)
            with self._timed("assemble"):
                size = self._assemble(plan, quantiser, spool)
        finally:
            spool.close()
        remove_folder(self.folder)
        return self._report(plan, quantiser, tally, size=size, need=need, before=before)

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.stages[stage] = time.perf_counter() - started

    def _begin(self) -> tuple[Spool, Plan, Quantiser, size_estimate.Need]:
        """Take up what an interrupted run left or survey the raster, and make sure that the disk suffices."""
        replaceable = self.request.options.overwrite or _replaces(self.folder)
        check_path(self.request.path, replaceable=replaceable)  # again, now that no other run can finish
        with self._timed("survey"):
            state = self._left_state() or self._fresh_state()
            quantiser = Quantiser.from_dict(state["quantiser"])
            plan = self._take_up(state)
            spool = Spool(self.folder, state)
            spool.recover()
            for tier in plan.tiers:
                _drop_spoiled(plan, tier, spool)
            return spool, plan, quantiser, self._check_disk(plan, quantiser, spool)

    def _left_state(self) -> dict[str, Any] | None:
        """What an interrupted run left, if this one is to go on from it."""
        left = read_state(self.folder) if self.request.options.resume else None
        if left is not None and (different := differences(left["request"], self.request.state)):
            raise OutputError(
                f"the interrupted run of {self.request.path} cannot go on: {different}; "
                "without resume it starts afresh"
            )
        return left

    def _take_up(self, state: dict[str, Any]) -> Plan:
        """Compute as the state says; how the work is cut."""
        if state["reconstruction"] is not None:
            encoder = self.request.encoder
            if self.lattice is None:
                self.lattice = encoder.plan or LatticePlan.from_dict(state["reconstruction"])
                self.network = encoder.prepare(self.lattice, cache_bytes(self.request.options.memory))
            self.places = approximated(self.network, self.request.grid)
        return self.request.plan(span=state["span"], kept=self._kept())

    def _kept(self) -> int:
        """Bytes of nodes that workers share."""
        interpolates = self.lattice is not None and self.lattice.interpolates
        return cache_bytes(self.request.options.memory) if interpolates else 0

    def _fresh_state(self) -> dict[str, Any]:
        request = self.request
        empty_folder(self.folder)
        self.progress.stage("finding the range of every band")
        quantiser, self.lattice, self.network = look_at(request, self.progress.stage)
        state = {
            "request": request.state,
            "quantiser": quantiser.as_dict(),
            "reconstruction": None if self.lattice is None else self.lattice.as_dict(),
            "span": request.plan(kept=self._kept()).span,
            "overwrite": request.options.overwrite,
        }
        write_state(self.folder, state)
        return state

    def _has_finished_work(self) -> bool:
        index = self.folder / "index"
        return index.exists() and index.stat().st_size > 0

    def _check_disk(self, plan: Plan, quantiser: Quantiser, spool: Spool) -> size_estimate.Need:
        """Announce the space needed, and refuse to begin without it."""
        request = self.request
        need = size_estimate.estimate(self.network, self.places, plan, quantiser, request.codec)
        free = shutil.disk_usage(self.folder).free + spool.bytes
        file, peak = size_text(need.file), size_text(need.peak)
        if free < need.peak:
            raise OutputError(
                f"{request.path} will take about {file}, and {peak} while it is written, but only "
                f"{size_text(free)} are free in {request.path.parent}"
            )
        self.progress.stage(f"computing; the file will take about {file}, {peak} on the way")
        return need

    def _finished_part(self, plan: Plan, spool: Spool) -> float:
        """How much of the pixels an interrupted run has computed; progress begins there."""
        done = sum(record.tally.pixels for key, record in spool.finished.items() if key[0] == 0)
        total = plan.shape[0] * plan.shape[1]
        self.progress.start(total)
        if done:
            self.progress.advance(done)
        return done / total

    def _build(self, plan: Plan, quantiser: Quantiser, spool: Spool) -> None:
        """All tiers, each from the one below."""
        job = Job(plan, quantiser, self.request.codec, spool)
        for tier in plan.tiers:
            source: Source = EncoderSource(self.network, self.places)
            if tier.number > 0:
                source = RemainderSource(plan, tier, spool)
                self.progress.stage(f"overviews from 1/{2**tier.first} on")

            def worker(stop: Any, advance: Callable[[int], None], source: Source = source) -> Worker:
                return Worker(job, source, stop, advance)

            units = [unit for unit in plan.units(tier) if not _is_built(unit, spool)]
            self.clock.add(run_units(units, worker, min(plan.threads, len(units)), self._advance))
            if tier.number > 0:
                spool.drop(remainder_file(tier.number - 1))

    def _advance(self, pixels: int) -> None:
        self.computed += pixels
        self.progress.advance(pixels)

    def _tally(self, spool: Spool, plan: Plan) -> Tally:
        tally = Tally.zero(plan.bands)
        for key, record in spool.finished.items():
            if key[0] == 0:
                tally.add(record.tally)
        return tally

    def _assemble(self, plan: Plan, quantiser: Quantiser, spool: Spool) -> int:
        """Lay out, copy, check and name the file; its size."""
        request = self.request
        self.progress.stage("putting the file together")
        directories = cog.directories(
            plan,
            quantiser,
            request.codec,
            names=request.encoder.band_names,
            geo=request.geo,
            metadata={
                "": {**_provenance(request), **self._certified(), **request.options.tags},
                STATE_DOMAIN: {STATE_NAME: json.dumps(request.state)},
            },
            software=f"satclip-engine {__version__}",
            band_numbers=self._errors(),
        )
        places = cog.collect(spool.finished.values(), plan.levels, plan.bands)
        layout = cog.lay_out(directories, places, plan.bands)
        cog.assemble(layout, places, spool)
        cog.check(spool.output, plan)
        publish(spool.output, request.path, replace=bool(spool.state["overwrite"]))
        return layout.size

    def _certified(self) -> dict[str, str]:
        """Tags that say how pixels were computed."""
        return EXACT_TAGS if self.lattice is None else self.lattice.tags

    def _errors(self) -> dict[str, np.ndarray]:
        """Of every band: what the reconstruction was found to be off by at most, and by rms."""
        found = {} if self.lattice is None else self.lattice.band_errors
        return {name.upper(): numbers for name, numbers in found.items()}

    def _report(
        self,
        plan: Plan,
        quantiser: Quantiser,
        tally: Tally,
        *,
        size: int,
        need: size_estimate.Need,
        before: float,
    ) -> Report:
        request, names = self.request, self.request.encoder.band_names
        clipped = clipping(quantiser, tally, names)
        notes = [*request.notes, *clipped.notes]
        for note in notes:
            warnings.warn(note, UserWarning, stacklevel=4)
        seconds = time.perf_counter() - self.started
        return Report(
            **_constants(request),
            bytes=size,
            valid_pixels=tally.valid,
            seconds=seconds,
            pixels_per_second=self.computed / seconds,
            peak_memory=peak_memory(),
            threads=plan.threads,
            busy=self.clock.total / (plan.threads * self.stages["tiles"]),
            cpu_seconds=self.clock.as_dict(),
            stage_seconds=dict(self.stages),
            disk_estimate=need.peak,
            clipping=clipped,
            max_quantisation_error=largest_error(quantiser, tally),
            resumed_from=before,
            reconstruction=None if self.lattice is None else self.lattice.summary(),
            notes=notes,
        )


def _finished_report(request: Request, started: float) -> Report:
    """The report of a run that found its file complete."""
    return Report(
        **_constants(request),
        bytes=request.path.stat().st_size,
        seconds=time.perf_counter() - started,
        peak_memory=peak_memory(),
        threads=request.threads,
        resumed_from=1.0,
        notes=["the file was complete already"],
    )


def _constants(request: Request) -> dict[str, Any]:
    """What a report says of the request alone."""
    (height, width), bands = request.grid.shape, request.encoder.embed_dim
    return {
        "path": request.path,
        "shape": (height, width),
        "bands": bands,
        "dtype": request.sample.name,
        "compress": request.codec.name,
        "blocksize": request.blocksize,
        "overviews": [2**number for number in range(1, len(pyramid((height, width), request.blocksize)))],
        "raw_bytes": height * width * bands * request.sample.bytes,
        "device": request.encoder.device,
        "precision": request.encoder.precision,
    }


def _is_built(unit: Unit, spool: Spool) -> bool:
    return all((unit.tier.number, unit.row, column) in spool.finished for column in unit.columns)


def _drop_spoiled(plan: Plan, tier: Tier, spool: Spool) -> None:
    """Forget superblocks of an interrupted run whose remainder is still needed and not intact."""
    if not tier.remainder or all(_is_built(unit, spool) for unit in plan.units(plan.tiers[tier.number + 1])):
        return
    for key in [key for key in spool.finished if key[0] == tier.number]:
        length = remainder_bytes(plan, tier, key[1], key[2])
        if not spool.remainder_intact(spool.finished[key], length):
            del spool.finished[key]


def _provenance(request: Request) -> dict[str, str]:
    weights = request.encoder.weights
    return {
        "software": f"satclip-engine {__version__}",
        "weights_sha256": weights.sha256,
        "function_sha256": request.encoder.sha256,
        "harmonics": weights.harmonics,
    }
