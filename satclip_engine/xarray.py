"""Registers the xarray accessor `.satclip.embed()`: the embedding of an object's own pixels.

import satclip_engine.xarray
scene = rioxarray.open_rasterio("scene.tif", chunks=1024)
scene.satclip.embed("default")      # (band, y, x), the scene's coordinates, lazy as the scene is
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import rioxarray  # noqa: F401  (registers .rio, by which CRSs are found)
import xarray

from satclip_engine.arrays import lazy
from satclip_engine.arrays.band_variable import named_array
from satclip_engine.encoder import Encoder, load
from satclip_engine.errors import UsageError
from satclip_engine.geo import xarray_grid
from satclip_engine.geo.crs import degrees_of, is_lonlat, look_like_degrees, unit_name
from satclip_engine.geo.grid import Grid
from satclip_engine.geo.pixels import CurvilinearGrid, PixelGrid, RectilinearGrid

if TYPE_CHECKING:
    import pyproj


@xarray.register_dataarray_accessor("satclip")
@xarray.register_dataset_accessor("satclip")
class Satclip:
    """`.satclip` of DataArrays and Datasets."""

    def __init__(self, obj: xarray.DataArray | xarray.Dataset) -> None:
        self._obj = obj

    def embed(
        self,
        source: Any = "default",
        *,
        bands: Any = None,
        chunks: Any = None,
        exact: bool = False,
        tolerance: float | None = None,
        **options: Any,
    ) -> xarray.DataArray:
        # The documentation is that of the function, below.
        return embed(
            self._obj, source, bands=bands, chunks=chunks, exact=exact, tolerance=tolerance, **options
        )


@dataclass(frozen=True)
class Located:
    """Pixels of an object and the dimensions they vary along: two, or others that `pixels` has in one row."""

    pixels: PixelGrid
    dims: tuple[Hashable, ...]
    shape: tuple[int, ...]
    names: tuple[Hashable, ...] = ()  # coordinates that say so, also where they are single numbers

    @property
    def raster(self) -> bool:
        """True for two dimensions."""
        return len(self.dims) == 2


def embed(
    obj: xarray.DataArray | xarray.Dataset,
    source: Any = "default",
    *,
    bands: Any = None,
    chunks: Any = None,
    exact: bool = False,
    tolerance: float | None = None,
    **options: Any,
) -> xarray.DataArray:
    """The embedding of an xarray object's own pixels or points, (band, …spatial dimensions) float32.

    obj: a raster with a CRS and x and y, samples of one (points, transects, single and stacked pixels), or
        anything with longitude and latitude coordinates: one along each of two dimensions (evenly spaced or
        not), two-dimensional ones, or points along shared dimensions. Coordinates are taken in the units
        that their attributes state.
    source: an Encoder, or what `load` takes; `options` then go to `load`.
    bands: which dimensions of the embedding, as `Encoder.select` takes them.
    chunks: makes it a dask array, as in `Encoder.grid`, with the object's own dimension names. A dask-
        backed object gives a dask array with the same spatial chunks.
    exact, tolerance: as in `Encoder.grid`, whose remarks on the first values asked for hold here too.

    Keeps the spatial coordinates and spatial_ref; other dimensions and their coordinates do not matter and
    go. Raises UsageError when the object does not say where on Earth it is, and for units that are not
    understood and coordinates that contradict each other.
    """
    if isinstance(source, Encoder):
        if options:
            raise UsageError(f"the Encoder is already loaded: leave out {', '.join(options)}")
        encoder = source
    else:
        encoder = load(source, **options)
    if bands is not None:
        encoder = encoder.select(bands)
    located = locate(obj)
    planned = lazy.PlannedPixels(encoder, located.pixels, exact=exact, tolerance=tolerance)
    variable = lazy.variable(planned, chunks=_chunks(obj, located, chunks))
    array = named_array(_shaped(variable, located), _coordinates(obj, planned, located), encoder.band_names)
    array.encoding["_FillValue"] = np.float32(np.nan)
    mapping = "spatial_ref" if isinstance(located.pixels, Grid) else None
    if mapping := xarray_grid.grid_mapping(obj) or mapping:
        array.encoding["grid_mapping"] = mapping
    planned.complete(array.attrs)
    return array


Satclip.embed.__doc__ = embed.__doc__


def locate(obj: xarray.DataArray | xarray.Dataset) -> Located:
    """Find the pixels of an xarray object. Raises UsageError when it does not say where on Earth it is."""
    if (geobox := xarray_grid.geobox_of(obj)) is not None:
        dims = xarray_grid.spatial_dims(obj)
        assert dims is not None
        grid = Grid.from_geobox(geobox, name="the xarray object")
        return Located(grid, dims, grid.shape)
    crs = xarray_grid.crs_of(obj)
    if crs is not None and (labels := xarray_grid.xy_of(obj, crs)) is not None:
        located = _named(_located_labels(labels[0].variable, labels[1].variable, crs), *labels)
        if isinstance(located.pixels, CurvilinearGrid):
            points = located.pixels.lonlat().reshape(*located.shape, 2)
            xarray_grid.check_lonlat_of_points(obj, located.dims, crs, points)
        return located
    if (lonlat := xarray_grid.lonlat_of(obj)) is not None:
        return _named(_located_lonlat(lonlat[0].variable, lonlat[1].variable), *lonlat)
    if hidden := xarray_grid.lonlat_variables(obj):
        raise UsageError(
            f"{' and '.join(hidden)} are data variables, not coordinates: use obj.set_coords({hidden}) first"
        )
    hint = "" if crs is None else "; it has a CRS alone"
    if crs is None and xarray_grid.names_grid_mapping(obj):
        hint = '; its CRS is a variable of the file: open that with xr.open_dataset(…, decode_coords="all")'
    raise UsageError(
        "the xarray object does not say where it is: it needs longitude and latitude coordinates, or x and y "
        f'with a CRS (obj.rio.write_crs("EPSG:4326") for degrees){hint}'
    )


def _named(located: Located, *coordinates: xarray.DataArray) -> Located:
    return replace(located, names=tuple(coordinate.name for coordinate in coordinates))


def _located_lonlat(lon: xarray.Variable, lat: xarray.Variable) -> Located:
    if lon.ndim == lat.ndim == 1 and lon.dims != lat.dims:
        axes = RectilinearGrid(lat.values, lon.values)
        return Located(axes, (lat.dims[0], lon.dims[0]), axes.shape)
    lon_all, lat_all = _broadcast(lon, lat)
    return _free_points(lon_all.values, lat_all.values, lon_all.dims)


def _located_labels(x: xarray.Variable, y: xarray.Variable, crs: pyproj.CRS) -> Located:
    """Labels in a CRS that are not evenly spaced, too few to tell, or of points."""
    if is_lonlat(crs):
        return _located_lonlat(x, y)
    x_all, y_all = _broadcast(x, y)
    if look_like_degrees(crs, x_all.values, y_all.values):
        raise UsageError(
            f"the xarray object's coordinates look like degrees, and its CRS {crs.name!r} counts in "
            f"{unit_name(crs)}s"
        )
    return _free_points(*degrees_of(crs, x_all.values, y_all.values), x_all.dims)


def _broadcast(lon: xarray.Variable, lat: xarray.Variable) -> tuple[xarray.Variable, xarray.Variable]:
    """Both with the same dimensions, those of the one that has more first."""
    first = lon if lon.ndim > lat.ndim else lat
    sizes = {**first.sizes, **lon.sizes, **lat.sizes}
    return lon.set_dims(sizes), lat.set_dims(sizes)


def _free_points(lon: np.ndarray, lat: np.ndarray, dims: tuple[Hashable, ...]) -> Located:
    rows = lon if lon.ndim == 2 else lon.reshape(1, -1)
    return Located(CurvilinearGrid(rows, lat.reshape(rows.shape)), dims, lon.shape)


def _chunks(obj: xarray.DataArray | xarray.Dataset, located: Located, chunks: Any) -> Any:
    """The caller's chunks, or those of a dask-backed object, in terms of y and x; None for no dask."""
    if chunks is None:
        own = dict(obj.unify_chunks().chunksizes)
        if not own:
            return None
        chunks = {dim: own[dim] for dim in located.dims if dim in own}
    if not isinstance(chunks, Mapping):
        return chunks
    if unknown := set(chunks) - {"band", *located.dims}:
        dims = ", ".join(map(str, located.dims))
        raise UsageError(
            f"chunks: dimensions are band and {dims}, not {', '.join(sorted(map(str, unknown)))}",
            argument="chunks",
        )
    if located.raster:
        names = dict(zip(located.dims, ("y", "x"), strict=True))
    else:  # in one row: cut along it only where there is one dimension to cut
        names = {located.dims[0]: "x"} if len(located.dims) == 1 else {}
    renamed = {names.get(dim, dim): sizes for dim, sizes in chunks.items() if dim == "band" or dim in names}
    return renamed if located.raster or len(located.dims) == 1 else {**renamed, "x": "auto"}


def _shaped(variable: xarray.Variable, located: Located) -> xarray.Variable:
    """(band, y, x) of the pixels as (band, …dims)."""
    if located.raster:
        return xarray.Variable(("band", *located.dims), variable._data, variable.attrs)
    row = variable.isel(y=0)
    if len(located.dims) == 1:
        return xarray.Variable(("band", *located.dims), row._data, row.attrs)
    data = row.data.reshape((row.shape[0], *located.shape))
    return xarray.Variable(("band", *located.dims), data, row.attrs)


def _coordinates(
    obj: xarray.DataArray | xarray.Dataset, planned: lazy.PlannedPixels, located: Located
) -> xarray.Coordinates:
    """The object's spatial coordinates and CRS, with their indexes, and the embedding's bands."""

    def is_spatial(name: Hashable) -> bool:
        coord = obj.coords[name]
        spatial = name in located.names or (coord.ndim > 0 and set(coord.dims) <= set(located.dims))
        return name != "band" and (spatial or name == xarray_grid.grid_mapping(obj))

    obj = _without_bands(obj, located)
    others = [name for name in obj.coords if not is_spatial(name)]
    coords = obj.coords.to_dataset().drop_vars(others).coords
    added: dict[Hashable, Any] = dict(lazy.band_coordinates(planned))
    if isinstance(located.pixels, Grid) and xarray_grid.grid_mapping(obj) is None:
        added["spatial_ref"] = lazy.spatial_ref(located.pixels)
    return xarray.Coordinates(coords).merge(xarray.Coordinates(added)).coords


def _without_bands(
    obj: xarray.DataArray | xarray.Dataset, located: Located
) -> xarray.DataArray | xarray.Dataset:
    """The object with its own bands out of the way, where they are stacked with its pixels."""
    bands = obj.coords.get("band")
    if bands is None or not set(bands.dims) & set(located.dims):
        return obj
    stacked = next(
        (dim for dim, index in obj.indexes.items() if dim != "band" and "band" in index.names), None
    )
    return (obj if stacked is None else obj.reset_index(stacked)).drop_vars("band")
