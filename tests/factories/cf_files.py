"""Small files in the layouts of well-known products, and where on Earth pyproj says that their pixels lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyproj
import xarray as xr


@dataclass(frozen=True)
class Product:
    """A Dataset, the name of its variable, and longitude and latitude of the variable's pixels."""

    dataset: xr.Dataset
    variable: str
    lon: np.ndarray
    lat: np.ndarray

    def array(self) -> xr.DataArray:
        """The variable, with the coordinate that holds its CRS where the file names one."""
        mapping = self.dataset[self.variable].attrs.get("grid_mapping")
        dataset = self.dataset if mapping is None else self.dataset.set_coords(mapping)
        return dataset[self.variable]

    def write(self, path: Path, **encoding: dict[str, object]) -> str:
        """Write it as netCDF 3; the name by which GDAL opens the variable."""
        self.dataset.to_netcdf(path, engine="scipy", format="NETCDF3_64BIT", encoding=encoding)
        return f"netcdf:{path}:{self.variable}"


def degrees(crs: pyproj.CRS, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Longitude and latitude of the pixels of two axes in a CRS."""
    to_degrees = pyproj.Transformer.from_crs(crs, 4326, always_xy=True)
    lon, lat = to_degrees.transform(*np.meshgrid(x, y))
    finite = np.isfinite(lon) & np.isfinite(lat)
    return np.where(finite, lon, np.nan), np.where(finite, lat, np.nan)


def projected(
    crs: pyproj.CRS, x: np.ndarray, y: np.ndarray, scale: float, units: str | None,
    *, names: tuple[str, str] = ("xc", "yc"), wkt: bool = True, beside: bool = True,
    standard: str = "projection_{}_coordinate",
) -> Product:  # fmt: skip
    """A raster of a CRS whose labels x and y are in a unit of `scale` of the CRS's own."""
    lon, lat = degrees(crs, x * scale, y * scale)
    mapping = {key: value for key, value in crs.to_cf().items() if wkt or key != "crs_wkt"}
    axes = {
        name: (name, labels, {"standard_name": standard.format(axis), **({"units": units} if units else {})})
        for name, labels, axis in zip(names, (x, y), "xy", strict=True)
    }
    dims = names[1], names[0]
    if beside:
        axes["lat"] = (dims, lat, {"units": "degrees_north", "standard_name": "latitude"})
        axes["lon"] = (dims, lon, {"units": "degrees_east", "standard_name": "longitude"})
    rows = np.indices(lon.shape, float)[0]
    variables = {"value": (dims, rows, {"grid_mapping": "crs"}), "crs": ((), 0, mapping)}
    return Product(xr.Dataset(variables, axes), "value", lon, lat)


def osi_saf(units: str | None = "km", *, wkt: bool = True, beside: bool = True) -> Product:
    """Sea ice of OSI SAF: polar stereographic in kilometres, 2-d longitudes and latitudes beside it."""
    x, y = np.arange(-3845.0, 3750, 500), np.arange(5845.0, -5350, -500)
    return projected(pyproj.CRS(3411), x, y, 1000.0, units, wkt=wkt, beside=beside)


GEOSTATIONARY = pyproj.CRS.from_cf(
    {
        "grid_mapping_name": "geostationary",
        "perspective_point_height": 35786023.0,
        "semi_major_axis": 6378137.0,
        "semi_minor_axis": 6356752.31414,
        "longitude_of_projection_origin": -75.0,
        "latitude_of_projection_origin": 0.0,
        "sweep_angle_axis": "x",
    }
)


def goes(units: str = "rad", *, wkt: bool = True, beside: bool = False) -> Product:
    """GOES-R ABI: the angles at which the satellite looks; corners of the disk lie in space."""
    unit = {"rad": 1.0, "microradian": 1e-6, "mrad": 1e-3, "degrees": np.pi / 180}[units]
    x, y = np.linspace(-0.14, 0.14, 29) / unit, np.linspace(0.15, -0.15, 31) / unit
    return projected(GEOSTATIONARY, x, y, unit * 35786023.0, units, names=("x", "y"), wkt=wkt, beside=beside)


def goes_packing(*, add_offset: bool = True) -> dict[str, dict[str, object]]:
    """How GOES stores its labels: 16-bit integers, those of y from north to south by a negative scale."""
    x = {"dtype": "int16", "scale_factor": 0.01, "add_offset": -0.14, "_FillValue": -32768}
    packing = {"x": x, "y": {**x, "scale_factor": -0.01, "add_offset": 0.15}}
    if not add_offset:
        packing = {name: {**axis, "add_offset": None} for name, axis in packing.items()}
    return {name: {k: v for k, v in axis.items() if v is not None} for name, axis in packing.items()}


def modis(*, units: str | None = "m") -> Product:
    """A MODIS tile in the sinusoidal projection of a sphere."""
    crs = pyproj.CRS("+proj=sinu +R=6371007.181 +units=m")
    x, y = 1111950.5 + 50_000.0 * np.arange(22), 5559752.6 - 50_000.0 * np.arange(20)
    return projected(crs, x, y, 1.0, units, names=("XDim", "YDim"), beside=False)


def icon() -> Product:
    """An ICON grid: cells along one dimension, their centres and corners in radians."""
    rng = np.random.default_rng(7)
    lon, lat = rng.uniform(-180, 180, 50), rng.uniform(-90, 90, 50)
    coords = {}
    for name, values, word in (("clon", lon, "longitude"), ("clat", lat, "latitude")):
        radians = {"units": "radian"}
        corners = np.radians(values)[:, None] + [-0.01, 0.0, 0.01]
        coords[name] = (
            "cell", np.radians(values), {**radians, "standard_name": word, "bounds": f"{name}_vertices"}
        )  # fmt: skip
        coords[f"{name}_vertices"] = (("cell", "nv"), corners, radians)
    return Product(xr.Dataset({"t": ("cell", np.zeros(50))}, coords), "t", lon, lat)


def era5() -> Product:
    """ERA5: longitudes 0 … 360, latitudes from the north pole to the south pole, float32, no CRS."""
    lon, lat = np.arange(0, 360, 15.0, np.float32), np.arange(90, -91, -15.0, np.float32)
    coords = {
        "longitude": ("longitude", lon, {"units": "degrees_east", "standard_name": "longitude"}),
        "latitude": ("latitude", lat, {"units": "degrees_north", "standard_name": "latitude"}),
    }
    values = np.zeros((2, lat.size, lon.size), np.float32)
    dataset = xr.Dataset({"t2m": (("time", "latitude", "longitude"), values)}, coords)
    return Product(dataset, "t2m", *np.meshgrid(lon, lat))


def wrf() -> Product:
    """WRF: latitudes and longitudes of a Lambert grid on a sphere, repeated for every time, no CRS."""
    crs = pyproj.CRS("+proj=lcc +lat_1=30 +lat_2=60 +lat_0=45 +lon_0=10 +R=6370000")
    lon, lat = degrees(crs, 25_000.0 * np.arange(-5, 6), 25_000.0 * np.arange(-4, 5))
    dims = ("Time", "south_north", "west_east")
    coords = {
        "XLAT": (dims, np.stack([lat, lat]).astype(np.float32), {"units": "degree_north"}),
        "XLONG": (dims, np.stack([lon, lon]).astype(np.float32), {"units": "degree_east"}),
    }
    return Product(
        xr.Dataset({"T2": (dims, np.zeros((2, *lon.shape)))}, coords), "T2", *np.stack([[lon] * 2, [lat] * 2])
    )


def roms() -> Product:
    """ROMS: a curvilinear grid with longitudes and latitudes of each kind of point of a cell."""
    row, col = np.indices((6, 9))
    lon, lat = -75 + 0.2 * col + 0.05 * row, 35 + 0.2 * row - 0.03 * col
    rho, u = ("eta_rho", "xi_rho"), ("eta_u", "xi_u")
    east, north = (
        {"units": f"degree_{direction}", "standard_name": word}
        for direction, word in (("east", "longitude"), ("north", "latitude"))
    )
    coords = {
        "lon_rho": (rho, lon, east),
        "lat_rho": (rho, lat, north),
        "lon_u": (u, lon[:, 1:] - 0.1, east),
        "lat_u": (u, lat[:, 1:], north),
    }
    variables = {"zeta": (rho, np.zeros(lon.shape)), "u": (u, np.zeros((6, 8)))}
    return Product(xr.Dataset(variables, coords), "zeta", lon, lat)


LAYOUTS: dict[str, Callable[[], Product]] = {
    "OSI SAF, km": osi_saf,
    "OSI SAF, km, without 2-d coordinates": lambda: osi_saf(beside=False),
    "OSI SAF, km, without WKT": lambda: osi_saf(wkt=False),
    "GOES, radians": goes,
    "GOES, microradians": lambda: goes("microradian"),
    "GOES, degrees, without WKT": lambda: goes("degrees", wkt=False),
    "MODIS, metres": modis,
    "MODIS, no unit": lambda: modis(units=None),
    "ICON": icon,
    "ERA5": era5,
    "WRF": wrf,
    "ROMS": roms,
}
RASTERS = [name for name in LAYOUTS if name.startswith(("OSI", "GOES", "MODIS"))]
