"""One reader of a remote raster, for remote_pixel.py: runs in an environment of its own, without our package.

    python remote_reader.py gdal|rio-tiler|async-tiff URL STEPS

STEPS is JSON: a list of {"do", …}. After each step a line of JSON goes to stdout, and a line on stdin is
awaited before the next one, so that whoever serves the file can tell whose requests are whose.
"""

import asyncio
import json
import sys
import time


class Gdal:
    """rasterio with the GDAL of its wheel."""

    def __init__(self, url):
        import rasterio

        self.url = f"/vsicurl/{url}" if url.startswith("http") else url
        self.dataset, self.rasterio = None, rasterio

    def run(self, step):
        if self.dataset is None:
            self.dataset = self.rasterio.open(self.url)
        do, dataset = step["do"], self.dataset
        if do == "pixel":
            return next(dataset.sample([step["lonlat"]])).sum(dtype=float)
        if do == "window":
            row, column, side = step["row"], step["column"], step["side"]
            window = ((row, row + side), (column, column + side))
            return dataset.read(step["bands"], window=window).sum(dtype=float)
        if do == "overview":
            return dataset.read(step["bands"], out_shape=(len(step["bands"]), *step["shape"])).sum(
                dtype=float
            )
        return dataset.read(step["bands"]).sum(dtype=float)


class RioTiler:
    def __init__(self, url):
        from rio_tiler.io import Reader

        self.reader, self.url, self.make = None, url, Reader

    def run(self, step):
        if self.reader is None:
            self.reader = self.make(self.url)
        return self.reader.point(*step["lonlat"], coord_crs=self.reader.dataset.crs).data.sum(dtype=float)


class AsyncTiff:
    """async-tiff: the tile of a pixel, all its planes."""

    def __init__(self, url):
        self.base, self.name = url.rsplit("/", 1)
        self.tiff, self.loop = None, asyncio.new_event_loop()

    def run(self, step):
        return self.loop.run_until_complete(self._tile(step))

    async def _tile(self, step):
        from async_tiff import TIFF
        from async_tiff.store import HTTPStore

        if self.tiff is None:
            store = HTTPStore(self.base, client_options={"allow_http": True})
            self.tiff = await TIFF.open(self.name, store=store)
        side = self.tiff.ifds[0].tile_width
        tile = await self.tiff.fetch_tile(step["column"] // side, step["row"] // side, 0)
        content = tile.compressed_bytes
        return float(sum(map(len, content)) if isinstance(content, list) else len(content))


READERS = {"gdal": Gdal, "rio-tiler": RioTiler, "async-tiff": AsyncTiff}


def main():
    reader = READERS[sys.argv[1]](sys.argv[2])
    for step in json.loads(sys.argv[3]):
        started, worked = time.perf_counter(), time.process_time()
        try:
            outcome = {"sum": float(reader.run(step))}
        except Exception as error:  # whatever a foreign reader says belongs into the table
            outcome = {"error": f"{type(error).__name__}: {error}"}
        spent = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - worked}
        print(json.dumps({**outcome, **spent}), flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    main()
