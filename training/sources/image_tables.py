"""Tables that list images (CSV and GeoParquet): file names, longitudes, latitudes, line numbers."""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from satclip_engine._optional import need
from satclip_engine.errors import Argument, DataError, UsageError, one_line
from satclip_engine.geo.columns import coordinate_columns
from satclip_engine.geo.crs import degrees_of, parse_crs
from satclip_engine.training.locations import join_first

_DELIMITERS: Final = ",;\t|"
_PATH_NAMES: Final = (
    *("fn", "path", "file", "filename", "file_name"),
    *("filepath", "file_path", "image", "image_path"),
)
_PARQUET: Final = (".parquet", ".geoparquet", ".pq")
SUFFIXES: Final = (".csv", ".tsv", *_PARQUET)
# Head of a geometry in WKB that consists of others: any order of bytes, with or without Z, M and SRID.
_COLLECTION: Final = re.compile(
    rb".(?:[\x04-\x0c\xec-\xf4\xd4-\xdc\xbc-\xc4][\0\3\7\x0b]\0[\0\x20\x40\x60\x80\xa0\xc0\xe0]"
    rb"|[\0\x20\x40\x60\x80\xa0\xc0\xe0]\0[\0\3\7\x0b][\x04-\x0c\xec-\xf4\xd4-\xdc\xbc-\xc4])",
    re.DOTALL,
)
_MAX_COLLECTIONS: Final = 2000  # in one geometry: 10,000 within each other take 8 MB of stack


@dataclass(frozen=True)
class ImageTable:
    """Columns by lower-case name; `lines[i]` is the line of row i in the file."""

    path: Path
    names: Sequence[str]  # as the file has them
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
        try:
            columns = coordinate_columns(self.names)
        except UsageError as error:
            if self.geometry is not None:
                return self.geometry
            is_projected = any(isinstance(piece, Argument) for piece in error.message)
            reason = "its coordinates are not degrees: transform them to columns lon and lat"
            raise DataError(f"{self.path}: {reason if is_projected else error}") from error
        if columns is None:
            return self.geometry
        lon, lat = (self._numbers(name.strip().lower()) for name in columns)
        return lon, lat

    def _numbers(self, name: str) -> np.ndarray:
        """A column as float64; empty cells become NaN. Raises DataError naming what is no number."""
        values = np.full(len(self.lines), np.nan)
        for index, value in enumerate(self.columns[name]):
            if value is None or (isinstance(value, str) and not value.strip()):
                continue
            try:
                values[index] = float(value)
            except (TypeError, ValueError):
                point = str(value).replace(",", ".", 1)
                hint = f": write {point}" if _is_number(point) else ""
                raise DataError(
                    f"{self.path}: {name} in {self.row(index)} is not a number: {value!r}{hint}"
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
        raise DataError(f"{path} cannot be read as a table ({one_line(error)})") from error
    if not table.lines:
        raise DataError(f"{path} lists no images")
    return table


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_csv(path: Path) -> ImageTable:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, delimiter=_delimiter(path))
        header = next(reader, [])
        rows, lines = [], []
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(header):
                raise DataError(
                    f"{path}: line {reader.line_num} has {len(row)} cells, the header has {len(header)}: "
                    "numbers want a decimal point, and text that holds the separator wants quotes"
                )
            rows.append(row)
            lines.append(reader.line_num)
    cells: Iterable[Sequence[Any]] = zip(*rows, strict=True) if rows else [()] * len(header)
    return ImageTable(path, header, _by_name(path, header, cells), lines)


def _delimiter(path: Path) -> str:
    """The separator by which most names of the header are known ones, then the one that gives most names."""

    def score(delimiter: str) -> tuple[int, int]:
        with path.open(newline="", encoding="utf-8-sig") as file:
            names = next(csv.reader(file, delimiter=delimiter), [])
        file_names = sum(name.strip().lower() in (*_PATH_NAMES, "url") for name in names)
        return file_names + 2 * _has_coordinates(names), len(names)

    return max(_DELIMITERS, key=score)  # the comma wins a tie


def _has_coordinates(names: Sequence[str]) -> bool:
    try:
        return coordinate_columns(names) is not None
    except UsageError:
        return True  # they speak of coordinates that cannot be used


def _by_name(path: Path, names: Sequence[str], cells: Iterable[Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """Columns by lower-case name. Raises DataError for a name that two of them have."""
    columns: dict[str, Sequence[Any]] = {}
    for name, column in zip((name.strip().lower() for name in names), cells, strict=True):
        if name and name in columns:
            raise DataError(f"{path}: two columns are called {name!r}: leave one of them out")
        columns[name] = column
    return columns


def _read_parquet(path: Path) -> ImageTable:
    parquet = need("pyarrow.parquet", extra="train", why="reading Parquet tables")
    from pyarrow import ArrowException

    try:
        table = parquet.read_table(path)
    except ArrowException as error:
        raise DataError(f"{path} is not a Parquet file ({one_line(error)})") from error
    names = table.column_names
    geo = (table.schema.metadata or {}).get(b"geo")
    geometry, geometry_names = (None, set()) if geo is None else _geometry(path, table, geo)
    plain = [name for name in names if name not in geometry_names]
    cells = [column.to_pylist() for name, column in zip(names, table.columns, strict=True) if name in plain]
    return ImageTable(path, plain, _by_name(path, plain, cells), range(table.num_rows), geometry)


def _geometry(path: Path, table: Any, metadata: bytes) -> tuple[tuple[np.ndarray, np.ndarray], set[str]]:
    """Centres of the geometries in degrees, and names of columns of geometries."""
    try:
        geo = json.loads(metadata)
        name, columns = geo["primary_column"], dict(geo["columns"])
        about, cells = dict(columns[name]), table.column(name).to_pylist()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path}: its GeoParquet metadata are damaged ({one_line(error)}): write it anew, or without "
            "geometries and with columns lon and lat"
        ) from error
    try:
        return _centres(path, cells, about), set(columns)
    except UsageError as error:
        raise DataError(f"{path}: the CRS of its geometries is not understood ({one_line(error)})") from error


def _centres(path: Path, cells: list[Any], about: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Centres of geometries in degrees; NaN for those without any point.

    Raises DataError for an encoding other than WKB, and for what is none.
    """
    import shapely

    if about.get("encoding") != "WKB":
        raise DataError(f"{path}: geometries are encoded as {about.get('encoding')}, expected WKB")
    if deep := [row for row, cell in enumerate(cells) if isinstance(cell, bytes) and _is_deep(cell)]:
        raise DataError(
            f"{path}: the geometry is nested without end in {join_first(f'row {n}' for n in deep)}"
        )
    shapes = shapely.from_wkb(
        _object_array(cell if isinstance(cell, bytes) and cell else None for cell in cells),
        on_invalid="ignore",
    )
    damaged = [
        row for row, (cell, shape) in enumerate(zip(cells, shapes, strict=True)) if cell and shape is None
    ]
    if damaged:
        rows = join_first(f"row {row}" for row in damaged)
        raise DataError(f"{path}: the geometry is damaged in {rows}")
    centre = shapely.centroid(shapes)
    centre[shapely.is_empty(centre)] = None
    x, y = shapely.get_x(centre), shapely.get_y(centre)
    return degrees_of(parse_crs(about["crs"]), x, y) if about.get("crs") else (x, y)


def _is_deep(wkb: bytes) -> bool:
    """True for a collection of collections of ..., which GEOS reads with the stack; it ends the process."""
    if not _COLLECTION.match(wkb):
        return False
    return (
        sum(1 for _ in itertools.islice(_COLLECTION.finditer(wkb), _MAX_COLLECTIONS + 1)) > _MAX_COLLECTIONS
    )


def _object_array(values: Iterable[Any]) -> np.ndarray:
    listed = list(values)
    array = np.empty(len(listed), object)
    array[:] = listed
    return array
