"""Embeddings of a grid as an xarray.DataArray whose values are computed where they are looked at.

The array's slices reach the kernel: one pixel is one evaluation. Coordinates of long axes are computed as
well, not stored. With `chunks` the array is a dask array instead.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray
from xarray.backends import BackendArray
from xarray.core import indexing

from satclip_engine._optional import need
from satclip_engine._version import __version__
from satclip_engine.arrays.axis import AxisIndex, AxisLabels
from satclip_engine.arrays.chunks import DIMS, normal_chunks
from satclip_engine.backends.buffers import aligned, kernel_order
from satclip_engine.errors import UsageError
from satclip_engine.geo.crs import unit_name
from satclip_engine.lattice.choose import fill_codes, placed, planned
from satclip_engine.quantize import Quantiser, find_quantiser, sample_type

if TYPE_CHECKING:
    from satclip_engine.encoder import Encoder
    from satclip_engine.geo.grid import Grid
    from satclip_engine.geo.pixels import PixelGrid

_SMALL = 4096  # pixels up to which all bands are computed: cheaper than preparing a network with fewer
_KEPT = 4  # selections of bands whose network stays prepared


def grid_array(
    encoder: Encoder, grid: Grid, *, chunks: Any = None, data: np.ndarray | None = None
) -> xarray.DataArray:
    """The embedding of every pixel, (band, y, x) float32: lazy, a dask array (`chunks`) or the given `data`.

    Raises UsageError for chunks that dask does not understand or that would be too many.
    """
    places = placed(encoder, grid)
    array = xarray.DataArray(
        variable(encoder, places, chunks=chunks, data=data),
        coords=coordinates(encoder, grid),
        name="embedding",
    )
    array.encoding = {"grid_mapping": "spatial_ref", "_FillValue": np.float32(np.nan)}
    return array


def coded_array(
    encoder: Encoder,
    grid: Grid,
    dtype: np.dtype[Any],
    out: Any,
    scale_offset: tuple[Any, Any] | None,
    **how: Any,
) -> xarray.DataArray:
    """The embedding of every pixel as int8 or int16 codes, (band, y, x), computed now, into `out` if given.

    Coordinates scale and offset along the band; `how`: exact and tolerance. Raises UsageError.
    """
    sample = sample_type(dtype.name)
    shape = (*grid.shape, encoder.embed_dim)
    memory = aligned(shape, dtype) if out is None else kernel_order(out, shape, dtype)
    if how["tolerance"] is not None:  # in σ it needs no step, and a lattice finds the ranges faster
        encoder = planned(encoder, grid, **how)
    if scale_offset is None:
        quantiser = find_quantiser(encoder, grid, sample, encoder.threads)
    else:
        quantiser = Quantiser(sample, *_scale_offset(scale_offset, encoder.embed_dim))
    encoder = planned(encoder, grid, step=quantiser.scale, dtype=dtype.name, **how)
    fill_codes(encoder, placed(encoder, grid), memory, quantiser)
    array = xarray.DataArray(
        xarray.Variable(DIMS, memory.transpose(2, 0, 1), attrs=attributes(encoder)),
        coords=coordinates(encoder, grid),
        name="embedding",
    )
    assert quantiser.scale is not None
    assert quantiser.offset is not None
    array = array.assign_coords(scale=("band", quantiser.scale), offset=("band", quantiser.offset))
    # As rioxarray has them of a file with scales: it writes them back, and knows the codes are not masked.
    array.attrs |= {
        "_FillValue": dtype.type(int(sample.nodata)),
        "scales": tuple(quantiser.scale.tolist()),
        "offsets": tuple(quantiser.offset.tolist()),
    }
    array.encoding = {"grid_mapping": "spatial_ref"}
    return array


def _scale_offset(given: tuple[Any, Any], bands: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale and offset of every band, as float32 has them. Raises UsageError."""
    try:
        scale, offset = (
            np.broadcast_to(np.asarray(values, np.float32).astype(np.float64), (bands,)) for values in given
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
    encoder: Encoder, places: PixelGrid, *, chunks: Any = None, data: np.ndarray | None = None
) -> xarray.Variable:
    """The embedding of any places, (band, y, x) float32 without coordinates; otherwise as `grid_array`."""
    values: Any
    if data is not None:
        values = data
    elif chunks is not None:
        values = dask_array(EncodedPixels(encoder, places, threads=1), chunks)
    else:
        lazily = indexing.LazilyIndexedArray(EncodedPixels(encoder, places))
        # As open_dataset does: computed once when all of it is asked for, and writable then.
        cached: Any = indexing.MemoryCachedArray(lazily)
        values = indexing.CopyOnWriteArray(cached)
    return xarray.Variable(DIMS, values, attrs=attributes(encoder))


def attributes(encoder: Encoder) -> dict[str, Any]:
    """What an embedding's array says about itself."""
    weights = encoder.weights
    return {
        "long_name": "location embedding",
        "weights": weights.provenance.source,
        "weights_sha256": weights.sha256,
        "function_sha256": encoder.sha256,
        "harmonics": weights.harmonics,
        "degrees": int(weights.degrees),
        "backend": encoder.backend,
        "software": f"satclip-engine {__version__}",
        **({} if encoder.plan is None else encoder.plan.attributes()),
    }


def coordinates(encoder: Encoder, grid: Grid) -> xarray.Coordinates:
    """band, y and x (2-d xc and yc when the grid is rotated, as rioxarray has them) and spatial_ref."""
    variables: dict[Hashable, Any] = {**band_coordinates(encoder), "spatial_ref": spatial_ref(grid)}
    if not grid.unrotated:
        for name, which in (("xc", 0), ("yc", 1)):
            variables[name] = xarray.Variable(
                ("y", "x"),
                indexing.LazilyIndexedArray(_RotatedLabels(grid, which)),
                _axis_attributes(grid)[which],
            )
        return xarray.Coordinates(variables)
    coords = xarray.Coordinates(variables)
    for dim, attrs in zip(("x", "y"), _axis_attributes(grid), strict=True):
        step, start, size = grid.steps(dim)
        index = AxisIndex(AxisLabels(dim, dim, size, start, step)).stored()
        axis = index.create_variables()[dim]
        axis.attrs.update(attrs)
        coords = coords.merge(xarray.Coordinates({dim: axis}, indexes={dim: index})).coords
    return coords


def band_coordinates(encoder: Encoder) -> dict[Hashable, xarray.Variable]:
    """band, and along it what an interpolation was measured to be off, in each band's unit."""
    errors = {} if encoder.plan is None else encoder.plan.band_errors
    return {
        "band": xarray.IndexVariable("band", encoder.band_names),
        **{name: xarray.Variable("band", numbers) for name, numbers in errors.items()},
    }


def spatial_ref(grid: Grid) -> xarray.Variable:
    """The CRS and transform in the words of CF and of GDAL."""
    crs, transform = grid.crs.proj, grid.transform
    wkt = crs.to_wkt()
    numbers = " ".join(repr(float(v)) for v in transform.to_gdal())
    attrs = {**crs.to_cf(), "crs_wkt": wkt, "spatial_ref": wkt, "GeoTransform": numbers}
    return xarray.Variable((), np.int32(crs.to_epsg() or 0), attrs)


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
    """The embedding of places, (band, y, x) float32; computes what is indexed: slices, arrays or points."""

    def __init__(self, encoder: Encoder, places: PixelGrid, *, threads: int | None = None) -> None:
        self.encoder, self.places, self.threads = encoder, places, threads
        self.shape = (encoder.embed_dim, *places.shape)
        self.dtype = np.dtype(np.float32)
        self._selected: OrderedDict[bytes, Encoder] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _encoded_places, (self.encoder, self.places, self.threads)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        encoder = self.encoder
        plan = "exact" if encoder.plan is None else encoder.plan.token
        return (
            "satclip_engine.EncodedPixels",
            encoder.sha256,
            encoder.backend,
            encoder.isa,
            plan,
            self.places,
        )

    def __getitem__(self, key: indexing.ExplicitIndexer) -> np.ndarray:
        if isinstance(key, indexing.VectorizedIndexer):
            return self._points(*indexing._arrayize_vectorized_indexer(key, self.shape).tuple)
        return self.window(key.tuple)

    def window(self, key: tuple[Any, ...]) -> np.ndarray:
        """Bands × rows × columns: integers (whose dimension is dropped), slices or arrays of indices."""
        key = tuple(key) + (slice(None),) * (3 - len(key))
        dropped = tuple(
            axis for axis, part in enumerate(key) if not isinstance(part, slice) and np.ndim(part) == 0
        )
        bands, rows, cols = (
            part if isinstance(part, slice) else np.atleast_1d(_positive(part, size))
            for part, size in zip(key, self.shape, strict=True)
        )
        wanted = np.arange(self.shape[0])[bands]
        pixels = _count(rows, self.shape[1]) * _count(cols, self.shape[2])
        if wanted.size == self.shape[0] or pixels <= _SMALL or wanted.size == 0:
            values = self.encoder.evaluate(self.places, rows, cols, threads=self.threads)[..., bands]
        else:
            values = self._with_bands(wanted).evaluate(self.places, rows, cols, threads=self.threads)
        values = values.transpose(2, 0, 1)
        return values.squeeze(dropped) if dropped else values

    def _points(self, bands: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """Broadcast index arrays: each pixel that occurs is embedded once, then its bands are picked."""
        rows, cols = _positive(rows, self.shape[1]), _positive(cols, self.shape[2])
        pixel, inverse = np.unique(rows * self.shape[2] + cols, return_inverse=True)
        row, col = np.divmod(pixel, self.shape[2])
        values = self.encoder.evaluate_pixels(self.places, row, col, threads=self.threads)
        return values[inverse.reshape(np.broadcast_shapes(rows.shape, cols.shape)), bands]

    def _with_bands(self, wanted: np.ndarray) -> Encoder:
        with self._lock:
            key = wanted.tobytes()
            if key not in self._selected:
                self._selected[key] = self.encoder.select(wanted)
                if len(self._selected) > _KEPT:
                    self._selected.popitem(last=False)
            self._selected.move_to_end(key)
            return self._selected[key]


def _encoded_places(encoder: Encoder, places: PixelGrid, threads: int | None) -> EncodedPixels:
    return EncodedPixels(encoder, places, threads=threads)


def _count(index: slice | np.ndarray, size: int) -> int:
    return len(range(size)[index]) if isinstance(index, slice) else int(np.size(index))


def _positive(index: Any, size: int) -> np.ndarray:
    array = np.asarray(index, dtype=np.int64)
    return np.where(array < 0, array + size, array)


class _Sliceable:
    """What dask.array.from_array needs of an EncodedPixels."""

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

    def __init__(self, grid: Grid, which: int) -> None:
        self.grid, self.which = grid, which
        self.shape, self.dtype = grid.shape, np.dtype(np.float64)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> np.ndarray:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self._window
        )

    def _window(self, key: tuple[Any, ...]) -> np.ndarray:
        rows, cols = (np.arange(size)[part] for part, size in zip(key, self.shape, strict=True))
        return self.grid.xy(np.expand_dims(rows, -1) if np.ndim(cols) else rows, cols)[self.which]
