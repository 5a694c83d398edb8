"""Tables that list images (CSV and GeoParquet): file names, longitudes, latitudes, line numbers."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from satclip_engine._optional import need
from satclip_engine.errors import DataError
from satclip_engine.geo.xarray_grid import LATITUDE, LONGITUDE

_LON_NAMES: Final = (*LONGITUDE, "x")
_LAT_NAMES: Final = (*LATITUDE, "y")
_PATH_NAMES: Final = (
    *("fn", "path", "file", "filename", "file_name"),
    *("filepath", "file_path", "image", "image_path"),
)
_PARQUET: Final = (".parquet", ".geoparquet", ".pq")
SUFFIXES: Final = (".csv", ".tsv", *_PARQUET)


@dataclass(frozen=True)
class ImageTable:
    """Columns by lower-case name; `lines[i]` is the line of row i in the file."""

    path: Path
    columns: dict[str, Sequence[Any]]
    lines: Sequence[int]
    geometry: tuple[np.ndarray, np.ndarray] | None = None  # lon, lat of the centres, from GeoParquet

    def row(self, index: int) -> str:
        """Name of row `index` in messages: its line, or its row in a Parquet file."""
        return f"{'row' if self.path.suffix.lower() in _PARQUET else 'line'} {self.lines[index]}"

    def files(self, *, names: Sequence[str] = _PATH_NAMES) -> list[str]:
        """The column of file names, or the last parts of the column `url`. Raises DataError without one."""
        for name in names:
            if name in self.columns:
                return [str(value or "").strip() for value in self.columns[name]]
        if "url" in self.columns:
            return [str(value or "").strip().rpartition("/")[2] for value in self.columns["url"]]
        raise DataError(
            f"{self.path} has no column of files: expected {', '.join(names)} or url, "
            f"found {self._column_names()}"
        )

    def locations(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Longitudes and latitudes by column names, then by geometry; None when there are neither."""
        lon = next((name for name in _LON_NAMES if name in self.columns), None)
        lat = next((name for name in _LAT_NAMES if name in self.columns), None)
        if lon is not None and lat is not None:
            return self._numbers(lon), self._numbers(lat)
        if (lon is None) != (lat is None):
            raise DataError(f"{self.path} needs columns lon and lat, found {self._column_names()}")
        return self.geometry

    def _numbers(self, name: str) -> np.ndarray:
        """A column as float64; empty cells become NaN. Raises DataError naming what is no number."""
        values = np.full(len(self.lines), np.nan)
        for index, value in enumerate(self.columns[name]):
            if value is None or (isinstance(value, str) and not value.strip()):
                continue
            try:
                values[index] = float(value)
            except (TypeError, ValueError):
                raise DataError(
                    f"{self.path}: {name} in {self.row(index)} is not a number: {value!r}"
                ) from None
        return values

    def _column_names(self) -> str:
        return ", ".join(self.columns) or "none"


def read_image_table(path: Path) -> ImageTable:
    """Read a CSV or Parquet file. Raises DataError naming the file."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        table = _read_parquet(path) if path.suffix.lower() in _PARQUET else _read_csv(path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a table ({error})") from error
    if not table.lines:
        raise DataError(f"{path} lists no images")
    return table


def _read_csv(path: Path) -> ImageTable:
    with path.open(newline="", encoding="utf-8-sig") as file:
        header = file.readline()
        file.seek(0)
        delimiter = max(",;\t", key=header.count)  # the comma wins a tie
        reader = csv.reader(file, delimiter=delimiter)
        names = [name.strip().lower() for name in next(reader, [])]
        rows, lines = [], []
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(names):
                raise DataError(
                    f"{path}: line {reader.line_num} has {len(row)} cells, the header has {len(names)}"
                )
            rows.append(row)
            lines.append(reader.line_num)
    cells: Iterable[Sequence[Any]] = zip(*rows, strict=True) if rows else [()] * len(names)
    return ImageTable(path, dict(zip(names, cells, strict=True)), lines)


def _read_parquet(path: Path) -> ImageTable:
    parquet = need("pyarrow.parquet", extra="train", why="reading Parquet tables")
    from pyarrow import ArrowException

    try:
        table = parquet.read_table(path)
    except ArrowException as error:
        raise DataError(f"{path} is not a Parquet file ({error})") from error
    geo = json.loads((table.schema.metadata or {}).get(b"geo", b"null"))
    geometry = _centres(path, table, geo) if geo else None
    plain = [name for name in table.column_names if not geo or name not in geo["columns"]]
    columns = {name.lower(): table.column(name).to_pylist() for name in plain}
    return ImageTable(path, columns, range(table.num_rows), geometry)


def _centres(path: Path, table: Any, geo: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Centres of the geometries in degrees. Raises DataError for an encoding other than WKB."""
    import shapely

    name = geo["primary_column"]
    column = geo["columns"][name]
    if column.get("encoding") != "WKB":
        raise DataError(f"{path}: geometries are encoded as {column.get('encoding')}, expected WKB")
    centre = shapely.centroid(shapely.from_wkb(_object_array(table.column(name).to_pylist())))
    x, y = shapely.get_x(centre), shapely.get_y(centre)
    return _degrees(column["crs"], x, y) if column.get("crs") else (x, y)


def _degrees(crs: Any, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Longitudes and latitudes of coordinates in a CRS given as PROJJSON."""
    import pyproj

    to_degrees = pyproj.Transformer.from_crs(pyproj.CRS.from_user_input(crs), "EPSG:4326", always_xy=True)
    return to_degrees.transform(x, y)


def _object_array(values: Iterable[Any]) -> np.ndarray:
    listed = list(values)
    array = np.empty(len(listed), object)
    array[:] = listed
    return array
