"""write_raster: a grid's embeddings as a Cloud-Optimized GeoTIFF, in bounded memory, resumable.

    ranges, plan, size ─► metatiles by worker threads ─► spool ─► assembled file ─► checked ─► its name

Nothing is ever visible under the output's name but the finished file. What is unfinished lies in the spool, a
folder beside it (`spool.py`).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from satclip_engine._version import __version__
from satclip_engine.arrays.ranges import RangeChoice, check_has_data
from satclip_engine.backends.protocols import Prepared
from satclip_engine.errors import Argument, OutputError
from satclip_engine.files import WorkingFolder, locked_folder
from satclip_engine.geo.pixels import PixelGrid
from satclip_engine.lattice.choose import approximated
from satclip_engine.lattice.nodes import CACHE_BYTES
from satclip_engine.lattice.plan import EXACT_TAGS, Plan
from satclip_engine.options import GLOBE, SCALES, RasterOptions
from satclip_engine.progress import Progress, Silence, size_text
from satclip_engine.quantize import QuantisationStatistics, Quantiser
from satclip_engine.raster import cog
from satclip_engine.raster.build import (
    CarryOverSource,
    Clock,
    EncoderSource,
    Job,
    PixelSource,
    Worker,
    carry_over_bytes,
    run_tasks,
)
from satclip_engine.raster.output import (
    STATE_DOMAIN,
    STATE_NAME,
    check_path,
    differences,
    disk_errors,
    publish,
    recorded_state,
)
from satclip_engine.raster.report import Report, clipping, largest_error, peak_memory
from satclip_engine.raster.request import Request, check_request
from satclip_engine.raster.size_estimate import DiskEstimate, estimate_disk
from satclip_engine.raster.spool import (
    INDEX,
    OUTPUT,
    STATE,
    Spool,
    carry_over_file,
    empty_folder,
    own_names,
    read_state,
    remove_folder,
    spool_folder,
    state_of,
    write_state,
)
from satclip_engine.raster.tiff import Tag
from satclip_engine.raster.tiling import PyramidPass, Task, Tiling, pyramid

if TYPE_CHECKING:
    from satclip_engine.encoder import Encoder

MAX_SPAN = 1024  # tiles along a metatile's side, far more than any tiling has

__all__ = ["Progress", "Report", "write_raster"]


def write_raster(
    enc: Encoder,
    path: str | os.PathLike[str],
    grid: Any,
    *,
    dtype: str = "int8",
    range: RangeChoice = GLOBE,
    scale: str = SCALES[0],
    compress: str = "zstd",
    interleave: str = "tile",
    blocksize: int | None = None,
    threads: int | None = None,
    memory: int = 10**9,
    exact: bool = False,
    tolerance: float | None = None,
    overwrite: bool = False,
    resume: bool = False,
    tags: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Write the embeddings of a grid's pixels as a Cloud-Optimized GeoTIFF, one band a dimension.

    enc: Encoder. path: of the file; until it is complete its spool `.NAME.satclip-spool` lies beside it.
    grid: Grid, odc-geo GeoBox, xarray object or raster file whose pixels are taken. An embedding has to be
        this encoder's own, of all its bands.
    dtype: int8, uint8 or int16 with scale and offset per band, float16 or float32. Pixels outside the CRS's
        domain are nodata.
    range: what codes of integers are spread over. "globe": each band's range over all of the Earth, so that
        all rasters of the encoder have the same scales, whatever pixels, and can be put together. "window":
        the range in this raster, which gives finer steps. Or a file, whose scales are taken: a raster, JSON
        or TOML (`arrays.ranges.ranges_in` has the form), or a mapping such as a report's `quantisation`.
    scale: "band" or "common", one scale and offset for all bands, for tools that know only one.
    compress: zstd, deflate, lerc or none.
    interleave: order of the bands. tile: every band has its own tiles, and those of the same pixels follow
        each other. pixel: a tile holds all bands, which is best for pixels read over a network. band: all
        tiles of a band, then those of the next.
    blocksize: pixels along a tile's side, a multiple of 16; default the smallest of 64, 128, 256 and 512 with
        which the file has at most two million tiles. Where a tile holds all bands, it is as small as makes
        it a short read, from 16 on.
    threads: how many work; default the encoder's. memory: bytes that they may take together, the
        interpreter's own not counted; fewer threads work when it is short.
    exact, tolerance: a raster finer than the field is interpolated from a lattice of it, and the error
        measured: at most `tolerance` σ of each band, default an eighth of a quantisation step (floats: 1e-4
        σ). What was found is in the report and in the file's tags. `exact` never interpolates.
    overwrite: replace an existing file, and what GDAL reads beside it (.ovr, .msk, .aux.xml), when the new
        one is complete; a link is replaced, not followed.
    resume: continue an interrupted run of the same raster, or return at once when it is finished; starts over
        when there is nothing.
    tags: metadata of the file, text without control characters.
    progress: told start(total), advance(pixels), stage(text) and finish().

    Overviews are means of the valid values of 2×2 pixels, taken before quantising. The file's bytes depend on
    none of threads, memory and interruptions. Raises UsageError for arguments that cannot be used,
    OutputError when the file cannot be written or an interrupted run differs from this one. After
    KeyboardInterrupt, a full disk or a crash the spool is kept.
    """
    started = time.perf_counter()
    options = RasterOptions(
        dtype=dtype,
        range=cast(str, range),  # checked with the file that it may name
        scale=scale,
        compress=compress,
        interleave=interleave,
        blocksize=blocksize,
        threads=threads,
        memory=memory,
        exact=exact,
        tolerance=tolerance,
        overwrite=overwrite,
        resume=resume,
        tags=tags or {},
        progress=progress or Silence(),
    )
    request = check_request(enc, Path(path), grid, options)
    try:
        if resume and _is_finished(request):
            _remove_leftovers(spool_folder(request.path))
            return _finished_report(request, started)
        with disk_errors(request.path), locked_folder(spool_folder(request.path), private=True) as folder:
            return _Run(request, folder, started).run()
    finally:
        options.progress.finish()


def _is_finished(request: Request) -> bool:
    """True where the output is there and what was asked for. Raises OutputError when it is another raster."""
    if not request.path.exists():
        return False
    recorded = recorded_state(request.path)
    if recorded is not None and not differences(recorded, request.state):
        return True
    if _replaces(spool_folder(request.path)):
        return False
    if recorded is None:
        problem = "exists and is no raster of this kind: there is nothing to resume"
    else:
        problem = f"is finished, but it differs: {differences(recorded, request.state)}"
    raise OutputError(f"{request.path} {problem}; to replace it, use ", Argument("overwrite", True))


def _remove_leftovers(path: Path) -> None:
    """Remove the spool of a run that was stopped after it had named its file."""
    if path.exists():
        with contextlib.suppress(OSError), locked_folder(path, private=True) as folder:
            remove_folder(folder)


def _replaces(path: Path) -> bool:
    """True where the interrupted run that left this spool was to replace an existing file."""
    return (read_state(path) or {}).get("overwrite") is True


def cache_bytes(memory: int) -> int:
    """Bytes of the memory allowed that hold nodes of a lattice."""
    return min(CACHE_BYTES, memory // 4)


def find_quantiser(request: Request) -> Quantiser:
    """The codes of a raster. Raises UsageError where no pixel has data."""
    encoder = request.encoder
    check_has_data(request.grid)
    return request.rule.quantiser(encoder, encoder.network, request.grid, request.tiling.threads)


def shared_bytes(plan: Plan | None, memory: int) -> int:
    """Bytes of nodes that workers share; none where pixels are evaluated."""
    return cache_bytes(memory) if plan is not None and plan.interpolates else 0


def fit_and_plan(request: Request, stage: Callable[[str], None]) -> tuple[Quantiser, Plan | None, Prepared]:
    """The ranges of a raster's bands, the plan that is best for it, and what computes by it.

    No plan: exact as asked for, without having looked for better.
    """
    encoder, options = request.encoder, request.options
    quantiser = find_quantiser(request)
    if options.exact:
        return quantiser, None, encoder.network
    stage("estimating the field's smoothness")
    plan, network = encoder.choose(
        request.grid,
        tolerance=options.tolerance,
        step=quantiser.scale,
        dtype=request.sample.name,
        cache_bytes=cache_bytes(options.memory),
    )
    return quantiser, plan, network


class _Run:
    """One run, from ranges and plan to the finished file, while its spool is locked."""

    def __init__(self, request: Request, folder: WorkingFolder, started: float) -> None:
        self.request, self.folder, self.started = request, folder, started
        self.network, self.pixels = request.encoder.network, cast(PixelGrid, request.grid)
        self.tiling: Tiling | None = None
        self.lattice: Plan | None = None  # None: exact, without having looked for better
        self.progress = request.options.progress
        self.clock = Clock()
        self.stages: dict[str, float] = {}
        self.computed = 0  # pixels, in this run
        self.notes: list[str] = []  # that were given already

    def run(self) -> Report:
        try:
            report = self._written()
        except BaseException:
            if not self._has_finished_work():
                self.folder.dissolve(own_names())
            raise
        self._remove_spool()
        return report

    def _written(self) -> Report:
        """Write the file, and leave the spool closed."""
        spool, tiling, quantiser, disk = self._begin()
        try:
            before = self._finished_share(tiling, spool)
            with self._timed("tiles"):
                self._build(tiling, quantiser, spool)
            statistics = self._statistics(spool, tiling)
            with self._timed("assemble"):
                size = self._assemble(tiling, quantiser, spool)
        finally:
            spool.close()
        return self._report(tiling, quantiser, statistics, size=size, disk=disk, before=before)

    def _remove_spool(self) -> None:
        """Remove the spool of the complete file; a failure is a note."""
        try:
            remove_folder(self.folder)
        except OSError as error:
            warnings.warn(
                f"{self.request.path} is complete and right, but {self.folder.path} could not be removed: "
                f"{error.strerror or error}",
                stacklevel=4,
            )

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.stages[stage] = time.perf_counter() - started

    def _begin(self) -> tuple[Spool, Tiling, Quantiser, DiskEstimate]:
        """Resume or start: state, plan and spool; refuse when the disk does not suffice."""
        replaceable = self.request.options.overwrite or _replaces(self.folder.path)
        check_path(self.request.path, replaceable=replaceable)  # again, now that no other run can finish
        with self._timed("survey"):
            state = self._interrupted_state() or self._fresh_state()
            quantiser = Quantiser.from_dict(state["quantiser"])
            self._use_plan_of(state)
            shared = shared_bytes(self.lattice, self.request.options.memory)
            tiling = self.tiling or self.request.tiling_beside(shared, state["span"])
            spool = Spool(self.folder, state)
            spool.recover(tiling)
            for pyramid_pass in tiling.passes:
                _drop_spoiled(tiling, pyramid_pass, spool)
            return spool, tiling, quantiser, self._check_disk(tiling, quantiser, spool)

    def _interrupted_state(self) -> dict[str, Any] | None:
        """State of the interrupted run that this one resumes; None to start over."""
        if not self.request.options.resume or not self.folder.has(STATE):
            return None
        state = state_of(self.folder)
        if state is None or not _is_sound(state, self.request):
            self.notes.append("what the interrupted run left is damaged: starting over")
            warnings.warn(self.notes[-1], stacklevel=5)
            return None
        if different := differences(state["request"], self.request.state):
            raise OutputError(
                f"the interrupted run of {self.request.path} cannot be resumed: {different}; "
                "to start over, run again without ",
                Argument("resume"),
            )
        return state

    def _use_plan_of(self, state: dict[str, Any]) -> None:
        """Compute as the state says."""
        if state["reconstruction"] is not None:
            encoder = self.request.encoder
            if self.lattice is None:
                self.lattice = encoder.plan or Plan.from_dict(state["reconstruction"])
                self.network = encoder.prepare(self.lattice, cache_bytes(self.request.options.memory))
            self.pixels = approximated(self.network, self.request.grid)

    def _fresh_state(self) -> dict[str, Any]:
        request = self.request
        empty_folder(self.folder)
        self.progress.stage("finding the range of every band")
        quantiser, self.lattice, self.network = fit_and_plan(request, self.progress.stage)
        self.tiling = request.tiling_beside(shared_bytes(self.lattice, request.options.memory))
        state = {
            "request": request.state,
            "quantiser": quantiser.as_dict(),
            "reconstruction": None if self.lattice is None else self.lattice.as_dict(),
            "span": self.tiling.span,
            "overwrite": request.options.overwrite,
        }
        write_state(self.folder, state)
        return state

    def _has_finished_work(self) -> bool:
        return self.folder.size(INDEX) > 0

    def _check_disk(self, tiling: Tiling, quantiser: Quantiser, spool: Spool) -> DiskEstimate:
        """Announce the space needed, and refuse to begin without it."""
        request = self.request
        disk = raster_disk(request, tiling, quantiser, self.lattice, self.network, self.pixels)
        free = shutil.disk_usage(self.folder.path).free + spool.bytes
        file, peak = size_text(disk.file), size_text(disk.peak)
        if free < disk.peak:
            raise OutputError(
                f"{request.path} will take about {file}, and {peak} while it is written, but only "
                f"{size_text(free)} are free in {request.path.parent}: make room, or choose another folder"
            )
        self.progress.stage(
            f"computing; the file will take about {file} ({peak} of disk while it is written)"
        )
        return disk

    def _finished_share(self, tiling: Tiling, spool: Spool) -> float:
        """Share of the pixels that an interrupted run has computed; progress begins there."""
        done = sum(record.statistics.pixels for key, record in spool.finished.items() if key[0] == 0)
        total = tiling.shape[0] * tiling.shape[1]
        self.progress.start(total)
        if done:
            self.progress.advance(done)
        return done / total

    def _build(self, tiling: Tiling, quantiser: Quantiser, spool: Spool) -> None:
        """Make all passes, each from the one before."""
        job = Job(tiling, quantiser, self.request.codec, spool)
        for pyramid_pass in tiling.passes:
            source: PixelSource = EncoderSource(self.network, self.pixels)
            if pyramid_pass.number > 0:
                source = CarryOverSource(tiling, pyramid_pass, spool)
                self.progress.stage(f"overviews from 1/{2**pyramid_pass.first} on")

            def worker(stop: Any, advance: Callable[[int], None], source: PixelSource = source) -> Worker:
                return Worker(job, source, stop, advance)

            tasks = [task for task in tiling.tasks(pyramid_pass) if not _is_built(task, spool)]
            self.clock.add(run_tasks(tasks, worker, min(tiling.threads, len(tasks)), self._advance))
            if pyramid_pass.number > 0:
                spool.drop(carry_over_file(pyramid_pass.number - 1))

    def _advance(self, pixels: int) -> None:
        self.computed += pixels
        self.progress.advance(pixels)

    def _statistics(self, spool: Spool, tiling: Tiling) -> QuantisationStatistics:
        statistics = QuantisationStatistics.zero(tiling.bands)
        for key, record in spool.finished.items():
            if key[0] == 0:
                statistics.add(record.statistics)
        return statistics

    def _assemble(self, tiling: Tiling, quantiser: Quantiser, spool: Spool) -> int:
        """Lay out, copy, check and name the file; its size."""
        request = self.request
        self.progress.stage("assembling the file")
        ifds = _raster_ifds(request, tiling, quantiser, self.lattice)
        indexes = cog.collect(spool.finished.values(), tiling.levels, tiling.planes)
        layout = cog.lay_out(ifds, indexes, tiling)
        cog.assemble(layout, indexes, spool, tiling)
        cog.check(spool.output, tiling)
        publish(self.folder, OUTPUT, request.path, replace=bool(spool.state["overwrite"]))
        return layout.size

    def _report(
        self,
        tiling: Tiling,
        quantiser: Quantiser,
        statistics: QuantisationStatistics,
        *,
        size: int,
        disk: DiskEstimate,
        before: float,
    ) -> Report:
        request, names = self.request, self.request.encoder.band_names
        clipped = clipping(quantiser, statistics, names)
        notes = [*request.notes, *clipped.notes]
        for note in notes:
            warnings.warn(note, UserWarning, stacklevel=5)
        seconds = time.perf_counter() - self.started
        return Report(
            **_constants(request),
            bytes=size,
            valid_pixels=statistics.valid,
            seconds=seconds,
            pixels_per_second=self.computed / seconds,
            peak_memory=peak_memory(),
            threads=tiling.threads,
            busy=self.clock.total / (tiling.threads * self.stages["tiles"]),
            cpu_seconds=self.clock.as_dict(),
            stage_seconds=dict(self.stages),
            disk_estimate=disk.peak,
            clipping=clipped,
            max_quantisation_error=largest_error(quantiser, statistics),
            quantisation=request.rule.summary(quantiser, names),
            resumed_from=before,
            reconstruction=None if self.lattice is None else self.lattice.summary(),
            notes=[*self.notes, *notes],
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
    """The part of a report that follows from the request alone."""
    (height, width), bands = request.grid.shape, request.encoder.embed_dim
    return {
        "path": request.path,
        "shape": (height, width),
        "bands": bands,
        "dtype": request.sample.name,
        "compress": request.codec.name,
        "blocksize": request.blocksize,
        "interleave": request.tiling.interleave,
        "overviews": [2**number for number in range(1, len(pyramid((height, width), request.blocksize)))],
        "raw_bytes": height * width * bands * request.sample.bytes,
        "device": request.encoder.device,
        "precision": request.encoder.precision,
    }


def _is_sound(state: dict[str, Any], request: Request) -> bool:
    """True for a state from which a run can be resumed."""
    bands = request.encoder.embed_dim
    try:
        quantiser = Quantiser.from_dict(state["quantiser"])
        if state["reconstruction"] is not None:
            Plan.from_dict(state["reconstruction"])
        numbers = (quantiser.scale, quantiser.offset)
        sound = all(
            values is None or (values.shape == (bands,) and abs(values).max() < math.inf)
            for values in numbers
        )
        span, kinds = state["span"], (type(state["request"]), type(state["overwrite"]), type(state["span"]))
        return sound and kinds == (dict, bool, int) and 0 < span <= MAX_SPAN and not span & (span - 1)
    except (AttributeError, KeyError, TypeError, ValueError):
        return False


def _is_built(task: Task, spool: Spool) -> bool:
    return all((task.pyramid_pass.number, task.row, column) in spool.finished for column in task.columns)


def _drop_spoiled(tiling: Tiling, pyramid_pass: PyramidPass, spool: Spool) -> None:
    """Drop metatiles of an interrupted run whose carried-over pixels are still needed and not intact."""
    if not pyramid_pass.carries_over or all(
        _is_built(task, spool) for task in tiling.tasks(tiling.passes[pyramid_pass.number + 1])
    ):
        return
    for key in [key for key in spool.finished if key[0] == pyramid_pass.number]:
        length = carry_over_bytes(tiling, pyramid_pass, key[1], key[2])
        if not spool.carry_over_intact(spool.finished[key], length):
            del spool.finished[key]


def raster_disk(
    request: Request,
    tiling: Tiling,
    quantiser: Quantiser,
    plan: Plan | None,
    network: Prepared,
    pixels: PixelGrid,
) -> DiskEstimate:
    """Disk space of a raster, its tags counted as they will be."""
    head = cog.head_bytes(_raster_ifds(request, tiling, quantiser, plan))
    return estimate_disk(network, pixels, tiling, quantiser, request.codec, head)


def _raster_ifds(
    request: Request, tiling: Tiling, quantiser: Quantiser, plan: Plan | None
) -> list[list[Tag]]:
    """The tags of every level, tile indexes left out."""
    errors = {} if plan is None else plan.band_errors
    return cog.ifd_tags(
        tiling,
        quantiser,
        request.codec,
        names=request.encoder.band_names,
        geo=request.geo,
        metadata={
            "": {
                **_provenance(request),
                **(EXACT_TAGS if plan is None else plan.tags),
                **request.options.tags,
            },
            STATE_DOMAIN: {STATE_NAME: json.dumps(request.state)},
        },
        software=f"satclip-engine {__version__}",
        # Errors of the reconstruction in every band: the largest measured, and the rms.
        band_numbers={name.upper(): numbers for name, numbers in errors.items()},
    )


def _provenance(request: Request) -> dict[str, str]:
    weights = request.encoder.weights
    return {
        "software": f"satclip-engine {__version__}",
        "weights_sha256": weights.sha256,
        "function_sha256": request.encoder.sha256,
        "harmonics": weights.harmonics,
        **request.rule.tags,
    }
