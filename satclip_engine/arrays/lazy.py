"""Embeddings of a grid as an xarray.DataArray whose values are computed where they are indexed.

The array's slices reach the kernel: one pixel is one evaluation. Coordinates of long axes are computed as
well, not stored. With `chunks` the array is a dask array instead.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray
from xarray.backends import BackendArray
from xarray.core import indexing

from satclip_engine._forks import Mutex
from satclip_engine._optional import need
from satclip_engine._version import __version__
from satclip_engine.arrays.axis import AxisIndex, AxisLabels
from satclip_engine.arrays.band_variable import named_array
from satclip_engine.arrays.chunks import DIMS, normal_chunks
from satclip_engine.arrays.ranges import RangeChoice, RangeRule, range_rule
from satclip_engine.backends.buffers import aligned, kernel_order
from satclip_engine.backends.protocols import Call, Prepared
from satclip_engine.errors import Argument, UsageError
from satclip_engine.geo.crs import unit_name
from satclip_engine.lattice.certificate import MIN_POSITIONS
from satclip_engine.lattice.choose import approximated
from satclip_engine.options import GLOBE, INTEGERS, SCALES, WINDOW
from satclip_engine.quantize import Quantiser, sample_type

if TYPE_CHECKING:
    from satclip_engine.encoder import Encoder
    from satclip_engine.geo.grid import Grid
    from satclip_engine.geo.pixels import Index, PixelGrid
    from satclip_engine.lattice.plan import Plan

ERRORS = ("reconstruction_max_error", "reconstruction_rms_error")  # coordinates along the band
# CF's attribute for remarks, of an array whose plan is not made yet; windows, copies and files keep it.
_COMMENT = (
    f"the measured error of every band is in the coordinates {' and '.join(ERRORS)}; "
    "Encoder.plan_grid beforehand states it among the attributes"
)
_FEW_PIXELS = 4096  # up to which all bands are computed: cheaper than preparing a network with fewer
_MAX_SELECTIONS = 4  # of bands, whose networks stay prepared


class PlannedPixels:
    """A raster's pixels and the plan by which an encoder evaluates them all, made when first needed.

    Threads may share it. It pickles with the plan, so that all processes evaluate alike.
    """

    def __init__(
        self,
        encoder: Encoder,
        pixels: PixelGrid,
        *,
        exact: bool = False,
        tolerance: float | None = None,
        partial: bool = False,
        plan: Plan | None = None,
    ) -> None:
        """partial: the raster may be read only in part, so its error is measured at few positions.

        plan: of the same function, pixels and options. Raises UsageError for these.
        """
        encoder.check(exact=exact, tolerance=tolerance)
        self.encoder, self.pixels = encoder, pixels
        self._arguments: dict[str, Any] = {"exact": exact, "tolerance": tolerance, "partial": partial}
        self._options: dict[str, Any] = {
            "tolerance": tolerance,
            "positions": MIN_POSITIONS if partial else None,
        }
        self._decided = encoder.plan or encoder.planner.decided(pixels, exact=exact, tolerance=tolerance)
        self._plan = self._decided or plan or encoder.planner.cached_plan(pixels, **self._options)
        self._lock = Mutex()
        self._network: Prepared | None = None
        self._located = pixels
        self._selections: OrderedDict[tuple[int, ...], Prepared] = OrderedDict()
        self._waiting: list[dict[str, Any]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle_pixels, (self.encoder, self.pixels, self._arguments, self.plan)

    def __deepcopy__(self, memo: dict[int, Any]) -> PlannedPixels:
        return self

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        encoder = self.encoder
        function = encoder.sha256, encoder.backend, encoder.isa
        exact = self._decided is not None and not self._decided.interpolates
        options = "exact" if exact else tuple(self._options.values())
        return ("satclip_engine.PlannedPixels", *function, options, self.pixels.__dask_tokenize__())

    @property
    def known_plan(self) -> Plan | None:
        """The plan if it is made; None before."""
        return self._plan

    @property
    def plan(self) -> Plan:
        """The plan, made now if it is not yet."""
        self._prepare()
        assert self._plan is not None
        return self._plan

    def encode(
        self,
        rows: Index = None,
        cols: Index = None,
        out: np.ndarray | None = None,
        threads: int | None = None,
        bands: tuple[int, ...] | None = None,
    ) -> np.ndarray:
        """Embed `rows` × `cols`: (h, w, E) float32; of some bands when they are given."""
        network = self._prepare() if bands is None else self._selected(bands)
        return network.encode_pixels(self._located, rows, cols, out, Call(threads))

    def encode_single(self, rows: np.ndarray, cols: np.ndarray, threads: int | None = None) -> np.ndarray:
        """Embed single pixels: (n,) rows and columns → (n, E) float32."""
        return self._prepare().encode_single_pixels(self._located, rows, cols, Call(threads))

    def complete(self, attributes: dict[str, Any]) -> None:
        """Add attributes that the plan gives: now, or a comment until it is made."""
        with self._lock:
            if self._plan is None:
                attributes["comment"] = _COMMENT
                self._waiting.append(attributes)
            else:
                attributes.update(self._plan.attributes())

    def _prepare(self) -> Prepared:
        if self._network is not None:
            return self._network
        plan = self._plan
        if plan is None:  # other threads that come here wait for the encoder's one plan
            plan, network = self.encoder.choose(self.pixels, **self._options)
        elif self._decided is not None or not plan.interpolates:
            network = self.encoder.network
        else:
            network = self.encoder.planner.share(plan, self.pixels, **self._options)
        with self._lock:
            if self._network is None:
                self._plan, self._located = plan, approximated(network, self.pixels)
                for attributes in self._waiting:
                    if attributes.get("comment") == _COMMENT:
                        del attributes["comment"]
                    attributes.update(plan.attributes())
                self._waiting.clear()
                self._network = network
            return self._network

    def _selected(self, bands: tuple[int, ...]) -> Prepared:
        plan = self.plan
        with self._lock:
            if bands not in self._selections:
                self._selections[bands] = self.encoder.select(bands).prepare(plan)
                if len(self._selections) > _MAX_SELECTIONS:
                    self._selections.popitem(last=False)
            self._selections.move_to_end(bands)
            return self._selections[bands]


def _unpickle_pixels(
    encoder: Encoder, pixels: PixelGrid, arguments: dict[str, Any], plan: Plan
) -> PlannedPixels:
    return PlannedPixels(encoder, pixels, **arguments, plan=plan)


def grid_array(
    planned: PlannedPixels, grid: Grid, *, chunks: Any = None, data: np.ndarray | None = None
) -> xarray.DataArray:
    """The embedding of every pixel, (band, y, x) float32: lazy, a dask array (`chunks`) or the given `data`.

    Raises UsageError for chunks that dask does not understand or that would be too many.
    """
    array = named_array(
        variable(planned, chunks=chunks, data=data), coordinates(planned, grid), planned.encoder.band_names
    )
    array.encoding |= {"grid_mapping": "spatial_ref", "_FillValue": np.float32(np.nan)}
    planned.complete(array.attrs)
    return array


def coding_rule(
    encoder: Encoder,
    dtype: np.dtype[Any] | None,
    *,
    range: RangeChoice,
    scale: str,
    scale_offset: tuple[Any, Any] | None,
) -> RangeRule:
    """The rule by which codes of a type follow from values; None: floats, which have no codes.

    Raises UsageError.
    """
    sample = sample_type("float32" if dtype is None else dtype.name)
    if scale_offset is None:
        return range_rule(range, scale, sample, encoder.band_names)
    if dtype is None:
        raise UsageError(
            f"scale_offset is for integers: give dtype {', '.join(INTEGERS)} too", argument="scale_offset"
        )
    if range != GLOBE or scale != SCALES[0]:
        raise UsageError(
            "scale_offset says what ",
            Argument("range"),
            " and ",
            Argument("scale"),
            " say: leave them out",
            argument="scale_offset",
        )
    return RangeRule(sample, content=Quantiser(sample, *_scale_offset(scale_offset, encoder.embed_dim)))


def coded_array(
    encoder: Encoder, grid: Grid, rule: RangeRule, out: Any, *, exact: bool, tolerance: float | None
) -> xarray.DataArray:
    """The embedding of every pixel as integer codes, (band, y, x), computed now, into `out` if given.

    Coordinates scale and offset along the band. Raises UsageError.
    """
    sample, dtype = rule.sample, np.dtype(rule.sample.name)
    shape = (*grid.shape, encoder.embed_dim)
    memory = aligned(shape, dtype) if out is None else kernel_order(out, shape, dtype)
    network = encoder.network
    if tolerance is not None and rule.origin == WINDOW:  # a lattice yields the ranges faster
        network = encoder.choose(grid, exact=exact, tolerance=tolerance)[1]
    quantiser = rule.quantiser(encoder, network, grid, encoder.threads)
    assert quantiser.scale is not None
    assert quantiser.offset is not None
    plan, network = encoder.choose(
        grid, exact=exact, tolerance=tolerance, step=quantiser.scale, dtype=dtype.name
    )
    call, signed = Call(quantise=quantiser.quantise), f"int{8 * dtype.itemsize}"
    network.encode_pixels(approximated(network, grid), out=memory.view(signed), call=call)
    if sample.zero:
        np.bitwise_xor(memory, sample.zero, out=memory)  # adds it to signed codes
    scale_offset_variables: dict[Hashable, xarray.Variable] = {
        "scale": xarray.Variable("band", quantiser.scale),
        "offset": xarray.Variable("band", quantiser.offset),
    }
    array = named_array(
        xarray.Variable(
            DIMS, memory.transpose(2, 0, 1), attrs=attributes(encoder) | rule.tags | plan.attributes()
        ),
        _coordinates({**_band_names(encoder), **_band_errors(plan), **scale_offset_variables}, grid),
        encoder.band_names,
        (quantiser.scale, quantiser.offset),
    )
    # An attribute, as rioxarray has it of codes that are not masked.
    array.attrs["_FillValue"] = dtype.type(int(sample.nodata))
    array.encoding["grid_mapping"] = "spatial_ref"
    return array


def _scale_offset(scale_offset: tuple[Any, Any], bands: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale and offset of every band, as float32 has them. Raises UsageError."""
    try:
        scale, offset = (
            np.broadcast_to(np.asarray(values, np.float32).astype(np.float64), (bands,))
            for values in scale_offset
        )
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"scale_offset must be two numbers, or two arrays with a number for each of {bands} bands",
            argument="scale_offset",
        ) from error
    if not (np.isfinite(scale).all() and np.isfinite(offset).all() and (scale > 0).all()):
        raise UsageError("scale_offset must be finite, and scales positive", argument="scale_offset")
    return scale, offset


def variable(
    planned: PlannedPixels, *, chunks: Any = None, data: np.ndarray | None = None
) -> xarray.Variable:
    """The embedding of any pixels, (band, y, x) float32 without coordinates; otherwise as `grid_array`."""
    values: Any
    if data is not None:
        values = data
    elif chunks is not None:
        values = dask_array(EncodedPixels(planned, threads=1), chunks)
    else:
        lazily = indexing.LazilyIndexedArray(EncodedPixels(planned))
        # As open_dataset does: computed once when all of it is asked for, and writable then.
        cached: Any = indexing.MemoryCachedArray(lazily)
        values = indexing.CopyOnWriteArray(cached)
    return xarray.Variable(DIMS, values, attrs=attributes(planned.encoder))


def attributes(encoder: Encoder) -> dict[str, Any]:
    """Attributes of an embedding's array, but for those that its plan gives."""
    weights = encoder.weights
    return {
        "weights": weights.provenance.source,
        "weights_sha256": weights.sha256,
        "function_sha256": encoder.sha256,
        "harmonics": weights.harmonics,
        "degrees": int(weights.degrees),
        "backend": encoder.backend,
        "software": f"satclip-engine {__version__}",
    }


def coordinates(planned: PlannedPixels, grid: Grid) -> xarray.Coordinates:
    """band, y and x (2-d xc and yc when the grid is rotated, as rioxarray has them) and spatial_ref."""
    return _coordinates(band_coordinates(planned), grid)


def _coordinates(of_bands: dict[Hashable, xarray.Variable], grid: Grid) -> xarray.Coordinates:
    variables: dict[Hashable, Any] = {**of_bands, "spatial_ref": spatial_ref(grid)}
    if not grid.unrotated:
        for name, axis in (("xc", 0), ("yc", 1)):
            variables[name] = xarray.Variable(
                ("y", "x"),
                indexing.LazilyIndexedArray(_RotatedLabels(grid, axis)),
                _axis_attributes(grid)[axis],
            )
        return xarray.Coordinates(variables)
    coords = xarray.Coordinates(variables)
    for dim, attrs in zip(("x", "y"), _axis_attributes(grid), strict=True):
        step, start, size = grid.steps(dim)
        index = AxisIndex(AxisLabels(dim, dim, size, start, step)).stored()
        labels = index.create_variables()[dim]
        labels.attrs.update(attrs)
        coords = coords.merge(xarray.Coordinates({dim: labels}, indexes={dim: index})).coords
    return coords


def band_coordinates(planned: PlannedPixels) -> dict[Hashable, xarray.Variable]:
    """band, and along it the measured error of an interpolation in each band's unit; 0 where all is exact."""
    names, plan = _band_names(planned.encoder), planned.known_plan
    if plan is not None:
        return {**names, **_band_errors(plan)}
    lazily = {name: indexing.LazilyIndexedArray(_BandErrors(planned, name)) for name in ERRORS}
    return {**names, **{name: xarray.Variable("band", errors) for name, errors in lazily.items()}}


def _band_names(encoder: Encoder) -> dict[Hashable, xarray.Variable]:
    # Objects, not fixed-width text, which Zarr's format 3 does not specify.
    return {"band": xarray.IndexVariable("band", np.array(encoder.band_names, object))}


def _band_errors(plan: Plan) -> dict[Hashable, xarray.Variable]:
    return {name: xarray.Variable("band", errors) for name, errors in plan.band_errors.items()}


def spatial_ref(grid: Grid) -> xarray.Variable:
    """The CRS and transform in the words of CF and of GDAL."""
    crs, transform = grid.crs.proj, grid.transform
    wkt = crs.to_wkt()
    numbers = " ".join(repr(float(v)) for v in transform.to_gdal())
    attrs = {**crs.to_cf(), "crs_wkt": wkt, "spatial_ref": wkt, "GeoTransform": numbers}
    # 0, as rioxarray has it: variables of other values would not merge with a scene's.
    return xarray.Variable((), 0, attrs)


def merging_with(array: xarray.DataArray, scene: Any) -> xarray.DataArray:
    """The array, in place, on the very labels of the object whose pixels it has: others would not merge.

    They differ by rounding where a scene was cut, resampled or has float32 labels; odc-geo's spatial_ref is
    the EPSG code.
    """
    if not isinstance(scene, (xarray.DataArray, xarray.Dataset)):
        return array
    for dim in ("x", "y"):
        if dim not in array.coords or dim not in scene.coords or scene.coords[dim].dims != (dim,):
            continue
        own, labels = array.coords[dim], scene.coords[dim].values
        step = abs(float(own[-1] - own[0])) / max(own.size - 1, 1)
        if not np.array_equal(own.values, labels) and np.abs(own.values - labels).max() <= step / 100:
            array.coords[dim] = xarray.Variable(dim, labels, own.attrs)
    mapping = scene.coords.get("spatial_ref")
    if mapping is not None and mapping.ndim == 0 and mapping.dtype.kind in "iu":
        array.coords["spatial_ref"] = xarray.Variable((), mapping.values, array.spatial_ref.attrs)
    return array


def _axis_attributes(grid: Grid) -> tuple[dict[str, str], dict[str, str]]:
    """CF attributes of x and y."""
    crs = grid.crs.proj
    unit = unit_name(crs)
    if crs.is_geographic:
        names = ("longitude", "latitude")
        units = ("degrees_east", "degrees_north") if unit == "degree" else (unit, unit)
    else:
        names = ("projection_x_coordinate", "projection_y_coordinate")
        units = (unit, unit)
    x, y = (
        {"axis": axis, "standard_name": name, "long_name": name.replace("_", " "), "units": unit}
        for axis, name, unit in zip("XY", names, units, strict=True)
    )
    return x, y


class EncodedPixels(BackendArray):
    """The embedding of pixels, (band, y, x) float32; computes what is indexed: slices, arrays or points."""

    def __init__(self, planned: PlannedPixels, *, threads: int | None = None) -> None:
        self.planned, self.threads = planned, threads
        self.shape = (planned.encoder.embed_dim, *planned.pixels.shape)
        self.dtype = np.dtype(np.float32)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return ("satclip_engine.EncodedPixels", *self.planned.__dask_tokenize__())

    def __getitem__(self, key: indexing.ExplicitIndexer) -> np.ndarray:
        if isinstance(key, indexing.VectorizedIndexer):
            return self._points(*indexing._arrayize_vectorized_indexer(key, self.shape).tuple)
        return self.window(key.tuple)

    def window(self, key: tuple[Any, ...]) -> np.ndarray:
        """Bands × rows × columns: integers (whose dimension is dropped), slices or arrays of indices."""
        key = tuple(key) + (slice(None),) * (3 - len(key))
        dropped = tuple(
            axis for axis, index in enumerate(key) if not isinstance(index, slice) and np.ndim(index) == 0
        )
        bands, rows, cols = (
            index if isinstance(index, slice) else np.atleast_1d(_positive(index, size))
            for index, size in zip(key, self.shape, strict=True)
        )
        chosen = np.arange(self.shape[0])[bands]
        pixels = _count(rows, self.shape[1]) * _count(cols, self.shape[2])
        if chosen.size == self.shape[0] or pixels <= _FEW_PIXELS or chosen.size == 0:
            values = self.planned.encode(rows, cols, threads=self.threads)[..., bands]
        else:
            values = self.planned.encode(rows, cols, threads=self.threads, bands=tuple(chosen.tolist()))
        values = values.transpose(2, 0, 1)
        return values.squeeze(dropped) if dropped else values

    def _points(self, bands: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """Broadcast index arrays: each pixel that occurs is embedded once, then its bands are picked."""
        rows, cols = _positive(rows, self.shape[1]), _positive(cols, self.shape[2])
        pixel, inverse = np.unique(rows * self.shape[2] + cols, return_inverse=True)
        row, col = np.divmod(pixel, self.shape[2])
        values = self.planned.encode_single(row, col, threads=self.threads)
        return values[inverse.reshape(np.broadcast_shapes(rows.shape, cols.shape)), bands]


class _BandErrors(BackendArray):
    """The measured error of every band, (E,) float64: makes the plan when it is indexed."""

    def __init__(self, planned: PlannedPixels, name: str) -> None:
        self.planned, self.name = planned, name
        self.shape, self.dtype = (planned.encoder.embed_dim,), np.dtype(np.float64)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return ("satclip_engine.BandErrors", self.name, *self.planned.__dask_tokenize__())

    def __getitem__(self, key: indexing.ExplicitIndexer) -> np.ndarray:
        errors = self.planned.plan.band_errors.get(self.name, np.zeros(self.shape))
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.VECTORIZED, lambda index: errors[index]
        )


def _count(index: slice | np.ndarray, size: int) -> int:
    return len(range(size)[index]) if isinstance(index, slice) else int(np.size(index))


def _positive(index: Any, size: int) -> np.ndarray:
    array = np.asarray(index, dtype=np.int64)
    return np.where(array < 0, array + size, array)


class _Sliceable:
    """An EncodedPixels as dask.array.from_array takes it."""

    def __init__(self, array: EncodedPixels) -> None:
        self.array, self.shape, self.dtype, self.ndim = array, array.shape, array.dtype, 3

    def __getitem__(self, key: Any) -> np.ndarray:
        return self.array.window(key if isinstance(key, tuple) else (key,))

    def __dask_tokenize__(self) -> Any:
        return self.array.__dask_tokenize__()


def dask_array(array: EncodedPixels, chunks: Any) -> Any:
    """`array` as a dask array.

    Raises UsageError naming a size that works when there would be more than 10⁵ chunks.
    """
    dask = need("dask.array", extra="dask", why="chunks=")
    sizes = normal_chunks(chunks, array.shape)
    return dask.from_array(
        _Sliceable(array), chunks=sizes, asarray=False, fancy=True, meta=np.empty((0, 0, 0), np.float32)
    )


class _RotatedLabels(BackendArray):
    """x or y of the pixels of a rotated grid, (y, x) float64."""

    def __init__(self, grid: Grid, axis: int) -> None:
        self.grid, self.axis = grid, axis
        self.shape, self.dtype = grid.shape, np.dtype(np.float64)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> np.ndarray:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self._window
        )

    def _window(self, key: tuple[Any, ...]) -> np.ndarray:
        rows, cols = (np.arange(size)[index] for index, size in zip(key, self.shape, strict=True))
        across, down, corner = self.grid.transform[3 * self.axis : 3 * self.axis + 3]
        # As rioxarray does it, in the same order: labels that differ in the last bit would not merge.
        centre = across * 0.5 + down * 0.5 + corner
        return across * cols + down * (np.expand_dims(rows, -1) if np.ndim(cols) else rows) + centre
