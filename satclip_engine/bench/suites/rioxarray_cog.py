"""Baseline of the write workloads: rioxarray and GDAL's COG driver, the raster in memory, then a file.

    python -m satclip_engine.bench.suites.rioxarray_cog OUTPUT RESOLUTION BANDS DTYPE COMPRESS THREADS

Values come from this package, so that only the writing differs; the driver gets all threads and the fastest
level of compression.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np


def main(path: str, resolution: str, bands: str, dtype: str, compress: str, threads: str) -> None:
    """Compute, quantise if the type is an integer, write."""
    import rioxarray  # noqa: F401  registers .rio

    from satclip_engine.encoder import load

    encoder = load("default", threads=int(threads))
    field: Any = encoder.grid(resolution=float(resolution), bands=f"1-{bands}", exact=True).load()
    if dtype.startswith("int"):
        largest = np.iinfo(dtype).max
        scale = np.abs(field).max(dim=("y", "x")) / largest
        field = np.rint(field / scale).astype(dtype)
        field = field.rio.write_nodata(-largest - 1)
        field.attrs["scales"], field.attrs["offsets"] = tuple(map(float, scale)), (0.0,) * int(bands)
    field.rio.to_raster(
        path,
        driver="COG",
        COMPRESS=compress.upper(),
        LEVEL=1,
        PREDICTOR="YES",
        NUM_THREADS=threads,
        BIGTIFF="IF_SAFER",
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
