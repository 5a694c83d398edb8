"""Embeddings of a grid as an xarray.DataArray whose values are computed where they are looked at.

The array's slices reach the kernel: one pixel is one evaluation. Coordinates of long axes are computed as
well, not
stored: those of a global 10 m grid alone would take 48 MB. With `chunks` the array is a dask array instead.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray
from xarray.backends import BackendArray
from xarray.core import indexing
from xarray.indexes import CoordinateTransform, CoordinateTransformIndex, PandasIndex

from satclip_engine._optional import need
from satclip_engine._version import __version__
from satclip_engine.errors import UsageError

if TYPE_CHECKING:
    from satclip_engine.encoder import Encoder
    from satclip_engine.grid import Grid

MAX_CHUNKS = (
    100_000  # dask spends about 1 ms and 1 kB on a task: beyond this the graph costs more than the raster
)
_STORED = (
    1 << 16
)  # labels of an axis up to this many are held in memory (512 kB), as an ordinary pandas index
_SMALL = (
    4096  # pixels up to which all bands are computed and some kept: cheaper than preparing a smaller network
)
_KEPT = 4  # selections of bands whose network stays prepared
_BLOCK = 64 << 20  # bytes of embedding that a chunk should have when dask chooses
DIMS = ("band", "y", "x")


def grid_array(
    encoder: Encoder, grid: Grid, *, chunks: Any = None, data: np.ndarray | None = None
) -> xarray.DataArray:
    """The embedding of every pixel, (band, y, x) float32: lazy, a dask array (`chunks`) or the given `data`.

    Raises UsageError for chunks that dask does not understand or that would be too many.
    """
    values: Any
    if data is not None:
        values = data
    elif chunks is not None:
        values = dask_array(EncodedGrid(encoder, grid, threads=1), chunks)
    else:
        lazily = indexing.LazilyIndexedArray(EncodedGrid(encoder, grid))
        # As open_dataset does: computed once when all of it is asked for, and writable then.
        cached: Any = indexing.MemoryCachedArray(lazily)
        values = indexing.CopyOnWriteArray(cached)
    variable = xarray.Variable(DIMS, values, attrs=attributes(encoder))
    array = xarray.DataArray(variable, coords=coordinates(encoder, grid), name="embedding")
    array.encoding = encoding()
    return array


def attributes(encoder: Encoder) -> dict[str, Any]:
    """What an embedding's array says about itself."""
    weights = encoder.weights
    return {
        "long_name": "location embedding",
        "weights": weights.provenance.source,
        "weights_sha256": weights.sha256,
        "embedding_sha256": encoder.sha256,
        "harmonics": weights.harmonics,
        "degrees": int(weights.degrees),
        "backend": encoder.backend,
        "software": f"satclip-engine {__version__}",
    }


def encoding() -> dict[str, Any]:
    """How CF, rioxarray and GDAL find an array's CRS and nodata."""
    return {"grid_mapping": "spatial_ref", "_FillValue": np.float32(np.nan)}


def coordinates(encoder: Encoder, grid: Grid) -> xarray.Coordinates:
    """band, y and x (2-d xc and yc when the grid is rotated, as rioxarray has them) and spatial_ref."""
    variables: dict[Hashable, Any] = {
        "band": xarray.IndexVariable("band", encoder.band_names),
        "spatial_ref": spatial_ref(grid),
    }
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
    if crs.is_geographic:
        unit = crs.axis_info[0].unit_name if crs.axis_info else "degree"
        east, north = ("degrees_east", "degrees_north") if unit == "degree" else (unit, unit)
        return (
            {"axis": "X", "standard_name": "longitude", "long_name": "longitude", "units": east},
            {"axis": "Y", "standard_name": "latitude", "long_name": "latitude", "units": north},
        )
    units = crs.axis_info[0].unit_name if crs.axis_info else "metre"
    return (
        {
            "axis": "X",
            "standard_name": "projection_x_coordinate",
            "long_name": "x of projection",
            "units": units,
        },
        {
            "axis": "Y",
            "standard_name": "projection_y_coordinate",
            "long_name": "y of projection",
            "units": units,
        },
    )


class EncodedGrid(BackendArray):
    """The embedding of a grid, (band, y, x) float32; computes what is indexed: slices, arrays or points."""

    def __init__(self, encoder: Encoder, grid: Grid, *, threads: int | None = None) -> None:
        self.encoder, self.grid, self.threads = encoder, grid, threads
        self.shape = (encoder.embed_dim, *grid.shape)
        self.dtype = np.dtype(np.float32)
        self._selected: OrderedDict[bytes, Encoder] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _encoded_grid, (self.encoder, self.grid, self.threads)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return ("satclip_engine.EncodedGrid", self.encoder.sha256, self.encoder.backend, self.grid)

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
            values = self.encoder.evaluate(self.grid, rows, cols, threads=self.threads)[..., bands]
        else:
            values = self._with_bands(wanted).evaluate(self.grid, rows, cols, threads=self.threads)
        values = values.transpose(2, 0, 1)
        return (
            values.reshape([n for axis, n in enumerate(values.shape) if axis not in dropped])
            if dropped
            else values
        )

    def _points(self, bands: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """Broadcast index arrays: each pixel that occurs is embedded once, then its bands are picked."""
        rows, cols = _positive(rows, self.shape[1]), _positive(cols, self.shape[2])
        pixel, inverse = np.unique(rows * self.shape[2] + cols, return_inverse=True)
        row, col = np.divmod(pixel, self.shape[2])
        values = self.encoder.evaluate_pixels(self.grid, row, col, threads=self.threads)
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


def _encoded_grid(encoder: Encoder, grid: Grid, threads: int | None) -> EncodedGrid:
    return EncodedGrid(encoder, grid, threads=threads)


def _count(index: slice | np.ndarray, size: int) -> int:
    return len(range(size)[index]) if isinstance(index, slice) else int(np.size(index))


def _positive(index: Any, size: int) -> np.ndarray:
    array = np.asarray(index, dtype=np.int64)
    return np.where(array < 0, array + size, array)


class _Sliceable:
    """What dask.array.from_array needs of an EncodedGrid."""

    def __init__(self, array: EncodedGrid) -> None:
        self.array, self.shape, self.dtype, self.ndim = array, array.shape, array.dtype, 3

    def __getitem__(self, key: Any) -> np.ndarray:
        return self.array.window(key if isinstance(key, tuple) else (key,))

    def __dask_tokenize__(self) -> Any:
        return self.array.__dask_tokenize__()


def dask_array(array: EncodedGrid, chunks: Any) -> Any:
    """`array` as a dask array.

    Raises UsageError naming a size that works when there would be more than 10⁵ chunks.
    """
    dask = need("dask.array", extra="dask", why="chunks=")
    sizes = normal_chunks(chunks, array.shape)
    return dask.from_array(
        _Sliceable(array), chunks=sizes, asarray=False, fancy=True, meta=np.empty((0, 0, 0), np.float32)
    )


def normal_chunks(chunks: Any, shape: tuple[int, int, int]) -> tuple[tuple[int, ...], ...]:
    """Chunk sizes along band, y and x, as dask has them; bands stay together unless they are asked for.

    chunks: "auto", one number for y and x, a mapping of dimensions, or a tuple for all three. Raises
        UsageError.
    """
    core = need("dask.array.core", extra="dask", why="chunks=")
    if isinstance(chunks, Mapping):
        if unknown := set(chunks) - set(DIMS):
            raise UsageError(
                f"chunks: dimensions are band, y and x, not {', '.join(map(str, sorted(unknown)))}"
            )
        wanted = tuple(chunks.get(dim, -1) for dim in DIMS)
    elif isinstance(chunks, tuple) and len(chunks) == 3:
        wanted = chunks
    elif isinstance(chunks, (int, str, np.integer)) and not isinstance(chunks, bool):
        wanted = (-1, chunks, chunks)
    else:
        raise UsageError(
            f"chunks must be 'auto', a number, a mapping of band, y and x, or three of them, not {chunks!r}"
        )
    wanted = tuple(-1 if part is None else part for part in wanted)
    _refuse_many(_estimate(wanted, shape), wanted, shape)
    try:
        sizes = core.normalize_chunks(wanted, shape=shape, dtype=np.float32, limit=_BLOCK)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UsageError(f"chunks {chunks!r} do not fit the shape {shape}: {error}") from error
    _refuse_many(math.prod(len(part) for part in sizes), wanted, shape)
    return tuple(tuple(int(n) for n in part) for part in sizes)


def _estimate(wanted: tuple[Any, ...], shape: tuple[int, int, int]) -> int:
    """How many chunks plain numbers would make, before dask lists them one by one."""
    return math.prod(
        -(-size // int(part)) if isinstance(part, (int, np.integer)) and part > 0 else 1
        for part, size in zip(wanted, shape, strict=True)
    )


def _refuse_many(count: int, wanted: tuple[Any, ...], shape: tuple[int, int, int]) -> None:
    if count <= MAX_CHUNKS:
        return
    bands = -(-shape[0] // wanted[0]) if isinstance(wanted[0], (int, np.integer)) and wanted[0] > 0 else 1
    side = math.ceil(math.sqrt(shape[1] * shape[2] * bands / MAX_CHUNKS))
    while -(-shape[1] // side) * -(-shape[2] // side) * bands > MAX_CHUNKS:
        side = side + max(1, side // 64)
    side = -(-side // 64) * 64
    raise UsageError(
        f"chunks: {count:,} chunks are more than dask handles well ({MAX_CHUNKS:,}); "
        f"use chunks={side} or larger, or no chunks: the array is lazy without them"
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


class AxisLabels(CoordinateTransform):
    """Labels start + step·(offset + stride·i), i = 0..size−1.

    The centres of a row or column of pixels, or of a slice of them.
    """

    def __init__(
        self, name: Hashable, dim: str, size: int, start: float, step: float, offset: int = 0, stride: int = 1
    ) -> None:
        super().__init__([name], {dim: size}, dtype=np.dtype(np.float64))
        self.start, self.step, self.offset, self.stride = start, step, offset, stride

    @property
    def size(self) -> int:
        return self.dim_size[self.dims[0]]

    def forward(self, dim_positions: dict[str, Any]) -> dict[Hashable, Any]:
        positions = np.asarray(dim_positions[self.dims[0]])
        return {self.coord_names[0]: (positions * self.stride + self.offset) * self.step + self.start}

    def reverse(self, coord_labels: dict[Hashable, Any]) -> dict[str, Any]:
        labels = np.asarray(coord_labels[self.coord_names[0]], dtype=np.float64)
        return {self.dims[0]: ((labels - self.start) / self.step - self.offset) / self.stride}

    def equals(self, other: CoordinateTransform, *, exclude: frozenset[Hashable] | None = None) -> bool:
        return isinstance(other, AxisLabels) and self._key() == other._key()

    def _key(self) -> tuple[Any, ...]:
        return self.size, self.start, self.step, self.offset, self.stride

    def sliced(self, part: slice) -> AxisLabels:
        """The labels of a slice; the same bits, as they are still counted from the whole axis's start."""
        numbers = range(self.size)[part]
        return AxisLabels(
            self.coord_names[0],
            self.dims[0],
            len(numbers),
            self.start,
            self.step,
            self.offset + numbers.start * self.stride,
            self.stride * numbers.step,
        )


class AxisIndex(CoordinateTransformIndex):
    """Selection by label along evenly spaced labels that are not stored.

    Where few labels are left (a slice, a list) it becomes an ordinary pandas index, which aligns with other
    arrays'.
    """

    transform: AxisLabels

    def stored(self) -> AxisIndex | PandasIndex:
        """This index, or a pandas one when it is short."""
        if self.transform.size > _STORED:
            return self
        return self._pandas(np.arange(self.transform.size), self.transform.dims[0])

    def _pandas(self, positions: np.ndarray, dim: str) -> PandasIndex:
        name = self.transform.coord_names[0]
        labels = self.transform.forward({self.transform.dims[0]: positions})[name]
        return PandasIndex(pd.Index(labels, name=name), dim, coord_dtype=labels.dtype)

    def isel(self, indexers: Mapping[Any, Any]) -> Any:
        part = indexers[self.transform.dims[0]]
        if isinstance(part, slice):
            return AxisIndex(self.transform.sliced(part)).stored()
        if np.ndim(part) != 1:
            return None
        dim = part.dims[0] if isinstance(part, xarray.Variable) else self.transform.dims[0]
        positions = np.arange(self.transform.size)[np.asarray(part)]
        return self._pandas(positions, str(dim))

    def sel(self, labels: dict[Any, Any], method: Any = None, tolerance: Any = None) -> Any:
        from xarray.core.indexes import IndexSelResult

        name, dim = self.transform.coord_names[0], self.transform.dims[0]
        label = labels[name]
        if isinstance(label, slice):
            if method is not None:
                raise NotImplementedError("a slice of labels takes no method")
            return IndexSelResult({dim: self._between(label)})
        if method not in (None, "nearest"):
            raise ValueError(f"method {method!r}: a computed axis knows None and 'nearest'")
        positions = self._nearest(np.asarray(getattr(label, "values", label)), method, tolerance)
        if isinstance(label, xarray.Variable):
            return IndexSelResult({dim: xarray.Variable(label.dims, positions)})
        if isinstance(label, xarray.DataArray):
            return IndexSelResult({dim: xarray.DataArray(positions, dims=label.dims, coords=label._coords)})
        return IndexSelResult({dim: positions if positions.ndim else int(positions)})

    def _nearest(self, labels: np.ndarray, method: Any, tolerance: Any) -> np.ndarray:
        name, dim = self.transform.coord_names[0], self.transform.dims[0]
        decimal = self.transform.reverse({name: labels})[dim]
        if not np.isfinite(decimal).all():
            raise KeyError(f"{name}: labels must be finite")
        positions = np.clip(np.rint(decimal), 0, self.transform.size - 1).astype(np.int64)
        off = np.abs(self.transform.forward({dim: positions})[name] - labels)
        limit = 0.0 if method is None else np.inf if tolerance is None else np.asarray(tolerance)
        if (missing := off > limit).any():
            raise KeyError(
                f"{name}: no label {np.atleast_1d(labels)[np.atleast_1d(missing)][0]}; try method='nearest'"
            )
        return positions

    def _between(self, part: slice) -> slice:
        """Positions whose labels lie between two labels, both included, in the axis's own direction."""
        name, dim, size = self.transform.coord_names[0], self.transform.dims[0], self.transform.size
        first, last = 0, size - 1
        # Rounding in the division must not lose a label that is named exactly.
        if part.start is not None:
            first = max(0, math.ceil(float(self.transform.reverse({name: part.start})[dim]) - 1e-6))
        if part.stop is not None:
            last = min(size - 1, math.floor(float(self.transform.reverse({name: part.stop})[dim]) + 1e-6))
        return slice(first, max(first, last + 1), part.step)
