"""Encoder: points on Earth in, embeddings out; point by point or pixel by pixel.

    enc = load("default")
    enc([[2.35, 48.86]])            # (1, 256) float32
    enc.grid(resolution=0.5)        # xarray.DataArray (band, y, x), computed where it is indexed

Longitude and latitude are degrees, longitude first. Importing this module imports NumPy only.
"""

from __future__ import annotations

import dataclasses
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from satclip_engine import backends
from satclip_engine._forks import Mutex
from satclip_engine.arrays.bands import band_names, component_count, parse_bands
from satclip_engine.backends.buffers import aligned, check_out, kernel_order
from satclip_engine.backends.protocols import BatchHints, Call, Prepared
from satclip_engine.device import parse_device
from satclip_engine.errors import Argument, UsageError, WeightsError, listed, refuse_both
from satclip_engine.field import AbsentWeights, Field, NetworkField
from satclip_engine.geo.grid import make_grid
from satclip_engine.geo.lonlat import as_lonlat, as_points_tensor, is_tensor, like_tensor
from satclip_engine.geo.pixels import Index, PixelGrid
from satclip_engine.options import GLOBE, INTEGERS, SCALES, checked_threads
from satclip_engine.weights import Layers, LocationWeights, read_weights
from satclip_engine.weights.location_weights import check_convention
from satclip_engine.weights.schema import Convention, check_modes

if TYPE_CHECKING:
    import xarray
    from torch import Tensor

    from satclip_engine.arrays.ranges import RangeChoice
    from satclip_engine.backends.extremes import Extremes
    from satclip_engine.geo.grid import Grid
    from satclip_engine.lattice.choose import Planner
    from satclip_engine.lattice.plan import Plan
    from satclip_engine.lattice.tolerance import Moments

_MAX_SELECTIONS = 4  # of an encoder, whose networks stay prepared


def load(
    source: Any = "default",
    *,
    harmonics: Literal["exact", "published"] | None = None,
    convention: Convention | None = None,
    backend: str = "auto",
    device: str = "cpu",
    threads: int | None = None,
    precision: str = "exact",
) -> Encoder:
    """Read weights and make them an Encoder.

    source: "default" or "default-l10", the path of a .ckpt or .safetensors file, hf://org/name[/file],
        LocationWeights, or the path or URL of an atlas, which ends in .zarr (see `write_atlas`): that is
        read chunk by chunk as needed, without weights or torch; of the options it takes threads.
    harmonics: "exact" or "published" spherical harmonics; None chooses by the checkpoint.
    convention: "analytic", "closed-form" or "orthonormal", of a file that does not state it; see
        `read_weights`.
    backend: "auto" (the fastest on the device that runs here), "triton", "cuda", "cpu" or "reference".
    device: "cpu", "cuda" (the current one) or "cuda:N".
    threads: number that compute, on a GPU that copy results; None takes all cores this process may use.
    precision: "exact", or "fast": on a GPU, layers after the first then multiply 16-bit numbers, and
        embeddings err by up to 5e-3 of their rms. The CPU computes exactly with either.

    Raises WeightsError for weights or an atlas that cannot be read, UsageError for other arguments and a
    device that is not there, MissingExtra for a backend that is not installed.
    """
    if _is_atlas(source):
        _check_atlas_options(
            harmonics=harmonics, convention=convention, backend=backend, device=device, precision=precision
        )
        return _load_atlas(source, threads)
    chosen = parse_device(device)
    backends.resolve(backend, chosen)  # before weights are read
    if isinstance(source, str) and "://" in source and not source.startswith("hf://"):
        raise WeightsError(
            f"{source}: weights are read from files and from hf://org/name[/file]: download it first"
        )
    if isinstance(source, LocationWeights):
        check_modes(convention=convention)
        check_convention(source.convention, convention, source.provenance.source)
        weights = source if harmonics is None else dataclasses.replace(source, harmonics=harmonics)
    else:
        weights = read_weights(source, harmonics=harmonics, convention=convention)
    return Encoder(NetworkField(weights, backend, chosen, precision), threads=threads)


def _is_atlas(source: Any) -> bool:
    return isinstance(source, (str, os.PathLike)) and str(source).rstrip("/").endswith(".zarr")


def _check_atlas_options(**options: Any) -> None:
    usual = {"harmonics": None, "convention": None, "backend": "auto", "device": "cpu", "precision": "exact"}
    if other := [Argument(name, value) for name, value in options.items() if value != usual[name]]:
        raise UsageError(
            "an atlas holds no network: ",
            *listed(other),
            " would change nothing; leave it out, or load the weights that the atlas was made of",
            argument=other[0].name,
        )


def _load_atlas(source: Any, threads: int | None) -> Encoder:
    from satclip_engine.atlas.field import open_field

    field = open_field(source)
    return Encoder(field, field.file.contents.band_names, threads)


class Encoder:
    """A location encoder ready to run.

    Immutable, safe to share between threads, and picklable: it is rebuilt from its weights, that of an atlas
    from where the file lies.
    """

    def __init__(
        self,
        field: Field,
        names: Sequence[str] | None = None,
        threads: int | None = None,
        head: bool = False,
    ) -> None:
        """Made by `load`, `with_head` and `select`. head: the field ends in a head."""
        self._field, self._head = field, head
        self._names = list(band_names(field.embed_dim) if names is None else names)
        self._threads = checked_threads(threads)
        self._lock = Mutex()
        self._network: Prepared | None = None
        self._planner: Planner | None = None
        self._selections: OrderedDict[tuple[Any, ...], Encoder] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        return Encoder, (self._field, self._names, self._threads, self._head)

    def __deepcopy__(self, memo: dict[int, Any]) -> Encoder:
        return self

    @property
    def weights(self) -> LocationWeights | AbsentWeights:
        """The checkpoint's own weights, without any folded head; of an atlas, facts about them."""
        return self._field.weights

    @property
    def layers(self) -> Layers:
        """The folded network that is computed, a head or selection of bands included."""
        return self._field.layers

    @property
    def sha256(self) -> str:
        """Identifies the function computed: weights, harmonics and head."""
        return self._field.sha256

    @property
    def embed_dim(self) -> int:
        """Length of an embedding: the number of bands of a raster."""
        return self._field.embed_dim

    @property
    def band_names(self) -> list[str]:
        """Names of the embedding's dimensions: e001, e002, …, or those of the head."""
        return list(self._names)

    @property
    def threads(self) -> int:
        """Number of threads that compute."""
        return self._threads or backends.available_cores()

    @property
    def backend(self) -> str:
        """Name of the backend in use."""
        return self.network.name

    @property
    def isa(self) -> str:
        """Instruction set, or architecture and precision: decides the bits beside the function."""
        return self.network.isa

    @property
    def device(self) -> str:
        """Device that computes: "cpu", "cuda:0"."""
        return self.network.device

    @property
    def precision(self) -> str:
        """The least accuracy asked for: "exact" or "fast"."""
        return self._field.precision

    @property
    def hints(self) -> BatchHints:
        """Batch size that keeps the device busy, and pinned host memory of a calling thread."""
        return self.network.hints

    @property
    def network(self) -> Prepared:
        """The network laid out by the backend (an atlas: its lattice), made when first needed."""
        if self._network is None:
            with self._lock:
                if self._network is None:
                    self._network = self._field.prepare(self.threads)
        return self._network

    @property
    def plan(self) -> Plan | None:
        """The only plan by which an atlas computes, with its measured error; None: chosen for each job."""
        return self._field.plan

    @property
    def moments(self) -> Moments:
        """σ and rms of every band over the globe."""
        return self.planner.moments()

    @property
    def extremes(self) -> Extremes:
        """Least and largest value of every band over the globe, by which integers are scaled."""
        return self.planner.extremes()

    @property
    def planner(self) -> Planner:
        """Chooses between evaluating and interpolating, and keeps the latest choices."""
        from satclip_engine.lattice.choose import Planner

        network = self.network
        with self._lock:
            if self._planner is None:
                self._planner = Planner(network, self.threads, self._field.extremes)
            return self._planner

    def check(self, *, exact: bool, tolerance: float | None) -> None:
        """Raise UsageError for what is no tolerance, and for an accuracy that cannot be given."""
        from satclip_engine.lattice.choose import check_options

        check_options(exact=exact, tolerance=tolerance)
        self._field.check(exact=exact, tolerance=tolerance)

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
        """Choose the best plan for a grid's pixels or (n, 2) points, and prepare what computes by it.

        Arguments are those of `lattice.choose.choose`. An atlas has a plan of its own. Raises UsageError.
        """
        self.check(exact=exact, tolerance=tolerance)
        if self._field.plan is not None:
            return self._field.plan, self.network
        return self.planner.choose(
            pixels_or_points,
            exact=exact,
            tolerance=tolerance,
            step=step,
            dtype=dtype,
            cache_bytes=cache_bytes,
            positions=positions,
        )

    def prepare(self, plan: Plan, cache_bytes: int | None = None) -> Prepared:
        """Lay the network out by a plan that was made of the same function, or of one with further bands."""
        return self.network if self._field.plan is not None else plan.prepare(self.network, cache_bytes)

    def __repr__(self) -> str:
        weights = self.weights
        hidden = " → ".join([str(weights.capacity)] * weights.hidden_layers)
        selection = "" if self.embed_dim == weights.embed_dim else f" (of {weights.embed_dim})"
        selection = " (head)" if self._head else selection
        return (
            f"<Encoder L={weights.degrees}: {weights.degrees**2} {weights.harmonics} harmonics → {hidden} → "
            f"{self.embed_dim}{selection}, from {weights.provenance.source}; "
            f"backend {self.backend} ({self.isa}) on {self.device}, {self.threads} threads>"
        )

    def __call__(
        self,
        lonlat: Any,
        *,
        crs: Any = None,
        exact: bool = False,
        tolerance: float | None = None,
        out: Any = None,
    ) -> Any:
        """Embed points.

        lonlat: (..., 2) degrees, longitude first, array-like or torch tensor; or anything with longitudes and
            latitudes by name, in any order: a table of pandas, polars or pyarrow, a mapping, a structured
            array, a Dataset; or a GeoDataFrame, GeoSeries or shapely points, in any CRS.
        crs: of points that are (x, y) in this CRS instead of degrees: `enc(table, crs="EPSG:27700")`.
        exact, tolerance: many points (10⁵ and more) are interpolated from a lattice of the field where that
            is faster, the error measured and at most `tolerance` σ of each band, default 1e-4; `exact` never
            interpolates. Tensors on a GPU are computed exactly.
        out: (..., E) float32 ndarray to fill and return, contiguous; not for tensors.

        Returns (..., E) float32: a tensor on the same device for a tensor, else an ndarray. Tensors on the
        GPU where backend "triton" computes never leave it. NaN or infinite points, missing geometries and
        those outside the domain of their CRS give NaN. Raises UsageError (a ValueError) naming the index
        where |latitude| > 90, and for names that do not say plainly which column is the longitude.
        """
        if is_tensor(lonlat):
            if crs is not None:
                raise UsageError("crs is for arrays and tables; a tensor holds degrees", argument="crs")
            if out is not None:
                raise UsageError("out is for arrays; a tensor gives a new tensor", argument="out")
            return self._embed_tensor(lonlat, exact, tolerance)
        points = as_lonlat(lonlat, crs)
        shape = (*points.shape[:-1], self.embed_dim)
        embedding = aligned(shape) if out is None else check_out(out, shape)
        self._embed(
            points.reshape(-1, 2), embedding.reshape(-1, self.embed_dim), exact, tolerance, out is None
        )
        return embedding

    def _embed(
        self, points: np.ndarray, out: np.ndarray, exact: bool, tolerance: float | None, fresh: bool = True
    ) -> None:
        from satclip_engine.lattice.choose import encode_points
        from satclip_engine.lattice.plan import MIN_POINTS

        self.check(exact=exact, tolerance=tolerance)
        network, points = self.network, np.ascontiguousarray(points)
        if not exact and (tolerance is not None or len(points) >= MIN_POINTS):
            network = self.choose(points, tolerance=tolerance)[1]
        encode_points(network, points, out, fresh=fresh)

    def _embed_tensor(self, lonlat: Tensor, exact: bool, tolerance: float | None) -> Tensor:
        tensor = as_points_tensor(lonlat)
        points = tensor.reshape(-1, 2)
        embedding = self.network.encode_tensor(points)
        if embedding is None:
            values = np.empty((len(points), self.embed_dim), np.float32)
            self._embed(points.cpu().numpy(), values, exact, tolerance)
            embedding = like_tensor(values, lonlat)
        return embedding.reshape(*tensor.shape[:-1], self.embed_dim)

    def evaluate(
        self,
        grid: PixelGrid,
        rows: Index = None,
        cols: Index = None,
        out: np.ndarray | None = None,
        threads: int | None = None,
        check: Callable[[], object] | None = None,
    ) -> np.ndarray:
        """Embed the pixels in `rows` × `cols` of a grid: (h, w, E) float32, NaN outside the CRS's domain.

        rows, cols: slices, arrays of indices, or None for all. out: (h, w, E) float32 to fill, of any
            strides.
        check: called every 50 ms or so while kernels run; what it raises ends the call.
        A pixel's value has the same bits in every window. Safe to call from several threads at once.
        """
        return self.network.encode_pixels(grid, rows, cols, out, Call(threads, check))

    def evaluate_pixels(
        self, grid: PixelGrid, rows: np.ndarray, cols: np.ndarray, threads: int | None = None
    ) -> np.ndarray:
        """Embed single pixels.

        (n,) rows and columns → (n, E) float32, the same bits as `evaluate` gives them.
        """
        return self.network.encode_single_pixels(grid, rows, cols, Call(threads))

    def grid(
        self,
        geobox: Any = None,
        *,
        resolution: float | str | Sequence[float | str] | None = None,
        bounds: Sequence[float] | None = None,
        crs: Any = None,
        like: Any = None,
        bounds_crs: Any = None,
        align: bool = False,
        chunks: Any = None,
        bands: Any = None,
        out: Any = None,
        exact: bool = False,
        tolerance: float | None = None,
        dtype: Any = None,
        range: RangeChoice = GLOBE,
        scale: str = SCALES[0],
        scale_offset: tuple[Any, Any] | None = None,
    ) -> xarray.DataArray:
        """Embed every pixel of a raster, as an xarray.DataArray (band, y, x) float32.

        geobox: odc-geo GeoBox (or Grid); or describe one as `make_grid` does by resolution, bounds (in
            `bounds_crs`, widened with `align`) and crs, or like.
        chunks: makes it a dask array: "auto", one number for y and x, or per dimension as dask takes it.
        bands: which dimensions of the embedding, e.g. "1-64" (from 1), [0, 5] (from 0), names or "pca:3";
            default all.
        out: (H, W, E) or (E, H, W) memory of that dtype with the band fastest, or such a DataArray: filled
            now and returned.
        exact, tolerance: a raster of 10⁵ pixels and more that is finer than the field is interpolated from a
            lattice of it, and the error measured: at most `tolerance` σ of each band, default 1e-4, for
            integers an eighth of a step. The array's attributes state the measured error. `exact` never
            interpolates.
        dtype: "float32", or "int8", "uint8" or "int16", which are computed now: value = code·scale + offset
            with coordinates scale and offset, (E,) each; the least code is no data.
        range, scale: what codes are spread over, as `write_raster` has them: "globe" gives all arrays and
            rasters of this encoder the same scales. scale_offset: two numbers, or two arrays with one for
            each band, in place of both.

        Without `chunks` and `out` values are computed where they are indexed, and only there. The first
        values of a raster that may be interpolated wait for its plan, which measures the field at some
        thousand points: up to a second or two at L = 40. All pixels are evaluated by that plan, so that a
        pixel has the same bits in whatever window and order it is asked for; from then on a pixel takes
        milliseconds, `.values` computes all of them. The encoder keeps its latest plans: a second array of
        the same raster waits for nothing. The plan completes this array's attributes (reconstruction, …) and
        its coordinates reconstruction_…; windows and copies made before it lack these attributes and have a
        comment in their place. To have them from the start, as in `.compute()` or a file, call `plan_grid`
        first. Raises UsageError.
        """
        from satclip_engine.arrays import lazy

        encoder = self._selected(bands)
        pixels = _grid_of(
            geobox,
            like,
            resolution=resolution,
            bounds=bounds,
            crs=crs,
            bounds_crs=bounds_crs,
            align=align,
        )
        codes = _code_type(dtype, out)
        rule = lazy.coding_rule(encoder, codes, range=range, scale=scale, scale_offset=scale_offset)
        if chunks is not None and (out is not None or codes is not None):
            raise UsageError(
                "out and integers are filled at once, chunks is for later: give one of them", argument="out"
            )
        scene = geobox if like is None else like
        if codes is not None:
            coded = lazy.coded_array(encoder, pixels, rule, out, exact=exact, tolerance=tolerance)
            return lazy.merging_with(coded, scene)
        partial = out is None and chunks is None
        planned = lazy.PlannedPixels(encoder, pixels, exact=exact, tolerance=tolerance, partial=partial)
        if out is None:
            return lazy.merging_with(lazy.grid_array(planned, pixels, chunks=chunks), scene)
        memory = kernel_order(out, (*pixels.shape, encoder.embed_dim))
        planned.encode(out=memory)
        return lazy.merging_with(lazy.grid_array(planned, pixels, data=memory.transpose(2, 0, 1)), scene)

    def plan_grid(
        self,
        geobox: Any = None,
        *,
        resolution: float | str | Sequence[float | str] | None = None,
        bounds: Sequence[float] | None = None,
        crs: Any = None,
        like: Any = None,
        bounds_crs: Any = None,
        align: bool = False,
        chunks: Any = None,
        bands: Any = None,
        exact: bool = False,
        tolerance: float | None = None,
    ) -> Plan:
        """Choose now how `grid` with these arguments evaluates its pixels, and measure the error.

        The encoder keeps the plan: arrays that `grid` makes of the same arguments afterwards have the
        measured error among their attributes from the start. `plan.certificate` is that error, None where
        every pixel is evaluated; `plan.reason` says why. Raises UsageError.
        """
        from satclip_engine.arrays.lazy import PlannedPixels

        encoder = self._selected(bands)
        pixels = _grid_of(
            geobox,
            like,
            resolution=resolution,
            bounds=bounds,
            crs=crs,
            bounds_crs=bounds_crs,
            align=align,
        )
        return PlannedPixels(encoder, pixels, exact=exact, tolerance=tolerance, partial=chunks is None).plan

    def with_head(self, weight: Any, bias: Any = None, names: Sequence[str] | None = None) -> Encoder:
        """Fold a linear head into the last layer: the new Encoder gives `weight @ embedding + bias`.

        weight: (K, E) real numbers; bias: (K,); names: K band names, default head1, head2, …
        Folded in float64. Raises UsageError naming the shapes.
        """
        field = self._field.with_head(_real(weight, "weight"), None if bias is None else _real(bias, "bias"))
        count = field.embed_dim
        if names is None:
            names = [f"head{number}" for number in range(1, count + 1)]
        if isinstance(names, str) or len(names) != count:
            raise UsageError(
                f"a head with {count} outputs needs {count} names, not {names!r}", argument="names"
            )
        return Encoder(field, [str(name) for name in names], self._threads, head=True)

    def select(self, bands: Any) -> Encoder:
        """An Encoder with only these outputs; of the latest choices the same one again.

        "1-64" (from 1), indices or a slice (from 0), or names; or "pca:K", the first K principal components
        over the globe, pca1 to pcaK, as `satclip-grid --bands pca:K` has them. Raises UsageError.
        """
        count = component_count(bands)
        choice = ("pca", count) if count else tuple(parse_bands(bands, self._names))
        with self._lock:
            chosen = self._selections.get(choice)
        if chosen is None:
            chosen = self._components(count) if count else self._outputs(choice)
        with self._lock:
            chosen = self._selections.setdefault(choice, chosen)
            self._selections.move_to_end(choice)
            if len(self._selections) > _MAX_SELECTIONS:
                self._selections.popitem(last=False)
            return chosen

    def _outputs(self, index: Sequence[Any]) -> Encoder:
        names = [self._names[i] for i in index]
        return Encoder(self._field.select(list(index)), names, self._threads, self._head)

    def _components(self, count: int) -> Encoder:
        from satclip_engine.arrays.pca import pca_head

        return pca_head(self, count)[0]

    def _selected(self, bands: Any) -> Encoder:
        return self if bands is None else self.select(bands)


def _grid_of(geobox: Any, like: Any, **description: Any) -> Grid:
    """The grid that arguments of `Encoder.grid` describe. Raises UsageError."""
    refuse_both(geobox=geobox, like=like)
    return make_grid(like=like if geobox is None else geobox, **description)


def _code_type(dtype: Any, out: Any) -> np.dtype[Any] | None:
    """An integer type where codes are asked for by name or by the dtype of `out`; None for float32."""
    if dtype is None:
        name = str(getattr(out, "dtype", None))
        return np.dtype(name) if name in INTEGERS else None
    try:
        kind = np.dtype(dtype)
    except TypeError:
        kind = np.dtype(object)
    if kind.name not in ("float32", *INTEGERS):
        raise UsageError(
            f"dtype must be float32, {', '.join(INTEGERS[:-1])} or {INTEGERS[-1]}, not {dtype!r}",
            argument="dtype",
        )
    return None if kind == np.float32 else kind


def _real(values: Any, what: str) -> np.ndarray:
    """A head's numbers as float64. Raises TypeError when they are not real ones."""
    array = np.asarray(values.detach().cpu().double() if is_tensor(values) else values)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"a head's {what} must be real numbers, not {array.dtype}")
    return array.astype(np.float64)
