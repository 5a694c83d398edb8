"""Georeference of a GeoTIFF: tags written by GDAL, and read back before they are believed."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from satclip_engine.errors import UsageError
from satclip_engine.geo.crs import crs_name, distance_metres, odc_crs, parse_crs, unit_metres
from satclip_engine.raster.tiff import GEO_TAGS, Tag, read_ifds

if TYPE_CHECKING:
    from satclip_engine.geo.grid import Grid

MAX_SHIFT_PIXELS = 0.01  # by which a pixel may move
MAX_SHIFT_METRES = 0.01  # whatever the pixel: what datums written with rounded numbers differ by
PROBES_PER_SIDE = 9
_NOWHERE = "nowhere on Earth"


def geo_tags(grid: Grid) -> list[Tag]:
    """The tags that GDAL itself writes for this grid's CRS and transform.

    Raises UsageError for a CRS that GeoTIFF cannot hold: some are dropped, others come back as another one
    whose pixels lie elsewhere.
    """
    content, stored = _through_gdal(grid)
    if stored is None:
        raise _cannot_hold(grid, "it is not written at all")
    moved = _distance(grid, stored)
    if moved:
        raise _cannot_hold(grid, f"read back, pixels would lie {moved}")
    directory = read_ifds(lambda offset, size: content[offset : offset + size])[0]
    return [tag for code, tag in directory.tags.items() if code in GEO_TAGS]


def _through_gdal(grid: Grid) -> tuple[bytes, Any]:
    """A file of one pixel with that CRS and transform, and the CRS that is read from it (or None)."""
    import rasterio
    from rasterio.io import MemoryFile

    wkt = grid.crs.to_wkt()
    with warnings.catch_warnings():
        # The identity is a transform, too.
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with MemoryFile() as memory:
            with memory.open(
                driver="GTiff", width=1, height=1, count=1, dtype="uint8", crs=wkt, transform=grid.transform
            ):
                pass
            content = memory.read()
        with MemoryFile(content) as memory, memory.open() as written:
            return content, written.crs


def _distance(grid: Grid, stored: Any) -> str:
    """Distance by which pixels move when their CRS is taken from the file, in words; empty when they stay."""
    from odc.geo.geobox import GeoBox

    from satclip_engine.geo.grid import make_grid

    try:
        crs = odc_crs(parse_crs(stored.to_wkt(version="WKT2_2019")))
        again = make_grid(like=GeoBox(grid.shape, grid.transform, crs))
    except UsageError:
        return _NOWHERE
    rows, cols = (
        np.unique(np.linspace(0, size - 1, PROBES_PER_SIDE).astype(np.int64)) for size in grid.shape
    )
    row, col = (index.ravel() for index in np.meshgrid(rows, cols, indexing="ij"))
    original, reread = grid.pixel_lonlat(row, col), again.pixel_lonlat(row, col)
    valid, still_valid = np.isfinite(original).all(axis=1), np.isfinite(reread).all(axis=1)
    if not valid.any():
        return ""
    if not (valid & still_valid).any():
        return _NOWHERE
    valid &= still_valid
    metres = float(distance_metres(*original[valid].T, *reread[valid].T).max())
    pixel = abs(grid.transform.determinant) ** 0.5 * unit_metres(grid.crs.proj)
    if metres <= max(MAX_SHIFT_PIXELS * pixel, MAX_SHIFT_METRES):
        return ""
    return f"{metres / 1000:.3g} km away" if metres >= 1000 else f"{metres:.3g} m away"


def _cannot_hold(grid: Grid, why: str) -> UsageError:
    return UsageError(
        f"a GeoTIFF cannot hold the CRS {crs_name(grid.crs)} ({why}): choose one with an EPSG code",
        argument="crs",
    )
