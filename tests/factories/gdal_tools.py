"""gdalbuildvrt, gdalwarp and gdaltindex out of the GDAL that rasterio has loaded: what the programs call."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path

import pytest
import rasterio


def build_vrt(output: Path, sources: Sequence[Path], *arguments: str) -> None:
    """gdalbuildvrt OUTPUT SOURCES."""
    _run("BuildVRT", "BuildVRTOptions", output, sources, arguments, in_between=(None,))


def warp(output: Path, sources: Sequence[Path], *arguments: str) -> None:
    """gdalwarp SOURCES OUTPUT."""
    _run("Warp", "WarpAppOptions", output, sources, arguments, before=(None,))


def tile_index(output: Path, sources: Sequence[Path], *arguments: str) -> None:
    """gdaltindex OUTPUT SOURCES, for rasters that the driver GTI reads."""
    library, failed = _library(), ctypes.c_int()
    with rasterio.Env():
        options = library.GDALTileIndexOptionsNew(_words(arguments), None)
        names = _words([str(path) for path in sources])
        index = library.GDALTileIndex(
            str(output).encode(), len(sources), names, options, ctypes.byref(failed)
        )
        library.GDALTileIndexOptionsFree(options)
        _close(index, failed)


def _run(
    tool: str,
    options_of: str,
    output: Path,
    sources: Sequence[Path],
    arguments: Sequence[str],
    *,
    before: tuple[None, ...] = (),
    in_between: tuple[None, ...] = (),
) -> None:
    library = _library()
    with rasterio.Env():
        options = getattr(library, f"GDAL{options_of}New")(_words(arguments), None)
        opened = [library.GDALOpen(str(path).encode(), 0) for path in sources]
        assert all(opened)
        handles = (ctypes.c_void_p * len(opened))(*opened)
        failed = ctypes.c_int()
        result = getattr(library, f"GDAL{tool}")(
            str(output).encode(), *before, len(opened), handles, *in_between, options, ctypes.byref(failed)
        )
        getattr(library, f"GDAL{options_of}Free")(options)
        _close(result, failed)
        for handle in opened:
            library.GDALClose(handle)


def _close(result: int | None, failed: ctypes.c_int) -> None:
    assert result
    assert not failed.value
    _library().GDALClose(result)


def _words(words: Sequence[str]) -> ctypes.Array[ctypes.c_char_p]:
    encoded = [word.encode() for word in words]
    return (ctypes.c_char_p * (len(encoded) + 1))(*encoded, None)


@functools.cache
def _library() -> ctypes.CDLL:
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    path = next((line.split()[-1] for line in lines if "libgdal" in line), None)
    if path is None or tuple(map(int, rasterio.__gdal_version__.split(".")[:2])) < (3, 9):
        pytest.skip("GDAL 3.9 or newer is needed, in a library that Linux tells of")
    library = ctypes.CDLL(path)
    pointer, text, words = ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(ctypes.c_char_p)
    number, flag, handles = ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(pointer)
    for name, result, arguments in (
        ("GDALOpen", pointer, (text, number)),
        ("GDALClose", number, (pointer,)),
        ("GDALBuildVRTOptionsNew", pointer, (words, pointer)),
        ("GDALBuildVRTOptionsFree", None, (pointer,)),
        ("GDALBuildVRT", pointer, (text, number, handles, pointer, pointer, flag)),
        ("GDALWarpAppOptionsNew", pointer, (words, pointer)),
        ("GDALWarpAppOptionsFree", None, (pointer,)),
        ("GDALWarp", pointer, (text, pointer, number, handles, pointer, flag)),
        ("GDALTileIndexOptionsNew", pointer, (words, pointer)),
        ("GDALTileIndexOptionsFree", None, (pointer,)),
        ("GDALTileIndex", pointer, (text, number, words, pointer, flag)),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
