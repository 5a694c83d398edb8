"""Where the values of an xarray object lie on Earth, as its coordinates and attributes say.

`geobox_of` finds a CRS and a transform; `places_of` also takes longitudes and latitudes as they stand.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray


def geobox_of(obj: xarray.DataArray | xarray.Dataset) -> Any:
    """The GeoBox of an xarray object with a CRS and evenly spaced coordinates; None when there is none."""
    import odc.geo.xr  # noqa: F401  (registers the accessor)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "multiple CRS coordinates": the first is taken, as rioxarray does
        try:
            geobox: Any = obj.odc.geobox
        except (ValueError, KeyError):  # a dimension without labels, labels that are not numbers
            geobox = None
    return geobox
