"""Encoder: places on Earth in, embeddings out; point by point or pixel by pixel.

    enc = load("default")
    enc([[2.35, 48.86]])            # (1, 256) float32
    enc.grid(resolution=0.5)        # xarray.DataArray (band, y, x), computed where it is looked at

Longitude and latitude are degrees, longitude first. Importing this module imports NumPy only.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from satclip_engine import backends
from satclip_engine.arrays.bands import band_names, parse_bands
from satclip_engine.backends.buffers import aligned, check_out, fill_rows, kernel_order
from satclip_engine.backends.protocols import Calls, Prepared, check_precision
from satclip_engine.device import CPU, Device, parse_device
from satclip_engine.errors import Argument, UsageError, listed, refuse_both
from satclip_engine.geo.grid import make_grid
from satclip_engine.geo.lonlat import as_lonlat, as_places_tensor, is_tensor, like_tensor
from satclip_engine.geo.pixels import Index, PixelGrid, Tiled, indices
from satclip_engine.weights import Layers, LocationWeights, read_weights

if TYPE_CHECKING:
    import xarray
    from torch import Tensor

    from satclip_engine.atlas.field import AtlasBackend, AtlasLayers, AtlasWeights
    from satclip_engine.lattice.plan import Plan
    from satclip_engine.lattice.tolerance import Moments


def load(
    source: Any = "default",
    *,
    harmonics: Literal["exact", "published"] | None = None,
    backend: str = "auto",
    device: str = "cpu",
    threads: int | None = None,
    precision: str = "exact",
) -> Encoder:
    """Read weights and make them an Encoder.

    source: "default" or "default-l10", the path of a .ckpt or .safetensors file, hf://org/name[/file],
        LocationWeights, or the path or URL of an atlas, which ends in .zarr (see `write_atlas`): that is
        read where it is asked, and needs neither weights nor torch; of the options it takes threads.
    harmonics: "exact" or "published" spherical harmonics; None chooses by the checkpoint.
    backend: "auto" (the fastest on the device that runs here), "triton", "cuda", "cpu" or "reference".
    device: "cpu", "cuda" (the current one) or "cuda:N".
    threads: how many to compute with, on a GPU to copy results with; None takes all cores this process may
        use.
    precision: "exact", or "fast": on a GPU, layers after the first then multiply 16-bit numbers, and
        embeddings err by up to 5e-3 of their rms. The CPU computes exactly whatever is asked for.

    Raises WeightsError for weights or an atlas that cannot be read, UsageError for other arguments and a
    device that is not there, MissingExtra for a backend that is not installed.
    """
    if _is_atlas(source):
        _check_atlas_options(harmonics=harmonics, backend=backend, device=device, precision=precision)
        return _load_atlas(source, threads)
    chosen = parse_device(device)
    backends.resolve(backend, chosen)  # before weights are read
    if isinstance(source, LocationWeights):
        weights = source if harmonics is None else dataclasses.replace(source, harmonics=harmonics)
    else:
        weights = read_weights(source, harmonics=harmonics)
    return Encoder(weights, backend=backend, threads=threads, device=chosen, precision=precision)


def _is_atlas(source: Any) -> bool:
    return isinstance(source, (str, os.PathLike)) and str(source).rstrip("/").endswith(".zarr")


def _check_atlas_options(**given: Any) -> None:
    usual = {"harmonics": None, "backend": "auto", "device": "cpu", "precision": "exact"}
    if other := [Argument(name, value) for name, value in given.items() if value != usual[name]]:
        raise UsageError(
            "an atlas holds no network: ",
            *listed(other),
            " would change nothing; leave it out, or load the weights that the atlas was made of",
            argument=other[0].name,
        )


def _load_atlas(source: Any, threads: int | None) -> Encoder:
    from satclip_engine.atlas.field import AtlasBackend, open_layers, weights_of

    layers = open_layers(source)
    names = layers.file.contents.band_names
    return Encoder(weights_of(layers), layers=layers, names=names, backend=AtlasBackend(), threads=threads)


class Encoder:
    """A location encoder ready to run.

    Immutable, safe to share between threads, and picklable: it is rebuilt from its weights, that of an atlas
    from where the file lies.
    """

    def __init__(
        self,
        weights: LocationWeights | AtlasWeights,
        *,
        backend: str | AtlasBackend = "auto",
        threads: int | None = None,
        layers: Layers | AtlasLayers | None = None,
        names: Sequence[str] | None = None,
        head: bool = False,
        device: Device = CPU,
        precision: str = "exact",
        plan: Plan | None = None,
    ) -> None:
        """Made by `load`, `with_head`, `select` and `by_plan`.

        `layers` is the folded network when it is not that of the weights alone, or what an atlas has in its
        place; `head` whether that ends in a head, `plan` how it computes; None: exactly.
        """
        if threads is not None and (not isinstance(threads, (int, np.integer)) or threads < 1):
            raise UsageError(f"threads must be a positive whole number, not {threads!r}", argument="threads")
        self._weights: Any = weights
        self._layers: Any = weights.folded() if layers is None else layers
        self._own_layers, self._head = layers is not None, head
        self._names = list(band_names(self._layers.embed_dim) if names is None else names)
        self._backend: Any = backends.resolve(backend, device) if isinstance(backend, str) else backend
        self._backend_asked, self._device, self._precision = backend, device, check_precision(precision)
        self._threads = None if threads is None else int(threads)
        self._plan: Plan | None = self._layers.plan if plan is None else plan
        self._lock = threading.Lock()
        self._cached: Prepared | None = None
        self._moments: Moments | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        layers = self._layers if self._own_layers else None
        return _rebuild, (self._weights, layers, self._names, self._head, self._how, self._plan)

    def __deepcopy__(self, memo: dict[int, Any]) -> Encoder:
        return self

    @property
    def weights(self) -> LocationWeights:
        """The checkpoint's own weights, without any folded head."""
        return self._weights

    @property
    def layers(self) -> Layers:
        """The folded network that is computed, a head or selection of bands included."""
        return self._layers

    @property
    def sha256(self) -> str:
        """Identifies the function computed: weights, harmonics and head."""
        return self._layers.sha256

    @property
    def embed_dim(self) -> int:
        """Length of an embedding: how many bands a raster has."""
        return self._layers.embed_dim

    @property
    def band_names(self) -> list[str]:
        """Names of the embedding's dimensions: e001, e002, …, or those of the head."""
        return list(self._names)

    @property
    def threads(self) -> int:
        """How many threads compute."""
        return self._threads or backends.available_cores()

    @property
    def backend(self) -> str:
        """Name of the backend in use."""
        return str(self._prepared.name)

    @property
    def isa(self) -> str:
        """What decides the bits beside the function: instruction set, or architecture and precision."""
        return str(self._prepared.isa)

    @property
    def device(self) -> str:
        """Where it computes: "cpu", "cuda:0"."""
        return str(self._prepared.device)

    @property
    def precision(self) -> str:
        """The least accuracy asked for: "exact" or "fast"."""
        return self._precision

    @property
    def calls(self) -> Calls:
        """How many places at once keep the device busy, and what host memory a calling thread takes."""
        return self._prepared.calls

    @property
    def _how(self) -> dict[str, Any]:
        """The arguments that say how it computes, as they were given."""
        return {
            "backend": self._backend_asked,
            "threads": self._threads,
            "device": self._device,
            "precision": self._precision,
        }

    @property
    def _prepared(self) -> Prepared:
        """The network in the backend's own layout, made when first needed."""
        with self._lock:
            if self._cached is None:
                exact = self._backend.prepare(
                    self._layers, threads=self.threads, device=self._device, precision=self._precision
                )
                self._cached = exact if self._plan is None else self._plan.network(exact)
            return self._cached

    @property
    def network(self) -> Prepared:
        """The network as it is computed."""
        return self._prepared

    @property
    def plan(self) -> Plan | None:
        """How it computes, with the measured error where it interpolates; None: exactly, without a plan."""
        return self._plan

    @property
    def moments(self) -> Moments:
        """σ and rms of every band over the globe."""
        from satclip_engine.lattice.tolerance import moments

        if self._moments is None:
            self._moments = moments(self._prepared, self.threads)
        return self._moments

    def by_plan(self, plan: Plan | None, network: Prepared | None = None) -> Encoder:
        """The same encoder computing by a plan; `network`: what computes by it, if it is prepared already."""
        layers = self._layers if self._own_layers else None
        made = _rebuild(self._weights, layers, self._names, self._head, self._how, plan)
        if network is None and not (plan is not None and plan.interpolates) and self._plan is None:
            network = self._prepared
        made._cached, made._moments = network, self._moments
        return made

    def __repr__(self) -> str:
        weights = self._weights
        hidden = " → ".join([str(weights.capacity)] * weights.hidden_layers)
        part = "" if self.embed_dim == weights.embed_dim else f" (of {weights.embed_dim})"
        part = " (head)" if self._head else part
        source = weights.provenance.source
        return (
            f"<Encoder L={weights.degrees}: {weights.degrees**2} {weights.harmonics} harmonics → {hidden} → "
            f"{self.embed_dim}{part}, from {source}; "
            f"backend {self.backend} ({self.isa}) on {self.device}, {self.threads} threads>"
        )

    def __call__(
        self, lonlat: Any, *, exact: bool = False, tolerance: float | None = None, out: Any = None
    ) -> Any:
        """Embed places.

        lonlat: (..., 2) degrees, longitude first: array-like, pandas table with lon and lat columns, or torch
            tensor.
        exact, tolerance: many places (10⁵ and more) are interpolated from a lattice of the field where that
            is faster, the error measured and at most `tolerance` σ of each band, default 1e-4; `exact` never
            interpolates. Tensors on a GPU are computed exactly.
        out: (..., E) float32 ndarray to fill and return, contiguous; not for tensors.

        Returns (..., E) float32: a tensor on the same device for a tensor, else an ndarray. Tensors on the
        GPU where backend "triton" computes never leave it. NaN or infinite places give NaN. Raises UsageError
        (a ValueError) naming the index where |latitude| > 90.
        """
        if is_tensor(lonlat):
            if out is not None:
                raise UsageError("out is for arrays; a tensor gives a new tensor", argument="out")
            return self._embed_tensor(lonlat, exact, tolerance)
        places = as_lonlat(lonlat)
        shape = (*places.shape[:-1], self.embed_dim)
        embedding = aligned(shape) if out is None else check_out(out, shape)
        self._embed(
            places.reshape(-1, 2), embedding.reshape(-1, self.embed_dim), exact, tolerance, out is None
        )
        return embedding

    def _embed(
        self, points: np.ndarray, out: np.ndarray, exact: bool, tolerance: float | None, fresh: bool = True
    ) -> None:
        from satclip_engine.lattice.choose import encode_many, planned

        points = np.ascontiguousarray(points)
        encode_many(planned(self, points, exact=exact, tolerance=tolerance), points, out, fresh=fresh)

    def _embed_tensor(self, lonlat: Tensor, exact: bool, tolerance: float | None) -> Tensor:
        places = as_places_tensor(lonlat)
        points = places.reshape(-1, 2)
        embedding = self._prepared.encode_tensor(points)
        if embedding is None:
            values = np.empty((len(points), self.embed_dim), np.float32)
            self._embed(points.cpu().numpy(), values, exact, tolerance)
            embedding = like_tensor(values, lonlat)
        return embedding.reshape(*places.shape[:-1], self.embed_dim)

    def evaluate(
        self,
        grid: PixelGrid,
        rows: Index = None,
        cols: Index = None,
        out: np.ndarray | None = None,
        threads: int | None = None,
        check: Callable[[], object] | None = None,
    ) -> np.ndarray:
        """Embed the pixels in `rows` × `cols` of a grid: (h, w, E) float32, NaN where there is no place.

        rows, cols: slices, arrays of indices, or None for all. out: (h, w, E) float32 to fill, of any
            strides.
        check: called every 50 ms or so while kernels run; what it raises ends the call.
        A pixel's value has the same bits in every window. Safe to call from several threads at once.
        """
        if grid.separable:
            lat, lon = grid.lat(rows), grid.lon(cols)

            def fill(block: slice, target: np.ndarray) -> None:
                self._prepared.encode_grid(lat[block], lon, out=target, threads=threads, check=check)

            return fill_rows((lat.size, lon.size, self.embed_dim), out, fill, rows_apart=True)
        if isinstance(grid, Tiled):
            return grid.evaluate(self._prepared, rows, cols, out, threads or self.threads, check)
        row, col = indices(rows, grid.shape[0]), indices(cols, grid.shape[1])

        def fill_points(block: slice, target: np.ndarray) -> None:
            points = grid.lonlat(row[block], col).reshape(-1, 2)
            flat = target.reshape(-1, self.embed_dim)
            self._prepared.encode(points, out=flat, threads=threads, check=check)

        return fill_rows((row.size, col.size, self.embed_dim), out, fill_points)

    def evaluate_pixels(
        self, grid: PixelGrid, rows: np.ndarray, cols: np.ndarray, threads: int | None = None
    ) -> np.ndarray:
        """Embed single pixels.

        (n,) rows and columns → (n, E) float32, the same bits as `evaluate` gives them.
        """
        out = np.empty((rows.size, self.embed_dim), np.float32)
        if not grid.separable:
            return self._prepared.encode(grid.pixel_lonlat(rows, cols), out=out, threads=threads)
        lat, lon = grid.lat(rows), grid.lon(cols)
        order = np.argsort(rows, kind="stable")
        for part in np.split(order, np.flatnonzero(np.diff(rows[order])) + 1):
            if part.size:
                line = np.empty((1, part.size, self.embed_dim), np.float32)
                out[part] = self._prepared.encode_grid(lat[part[:1]], lon[part], out=line, threads=threads)[0]
        return out

    def grid(
        self,
        geobox: Any = None,
        *,
        resolution: float | Sequence[float] | None = None,
        bounds: Sequence[float] | None = None,
        crs: Any = None,
        like: Any = None,
        chunks: Any = None,
        bands: Any = None,
        out: Any = None,
        exact: bool = False,
        tolerance: float | None = None,
        dtype: Any = None,
        scale_offset: tuple[Any, Any] | None = None,
    ) -> xarray.DataArray:
        """Embed every pixel of a raster, as an xarray.DataArray (band, y, x) float32.

        geobox: odc-geo GeoBox (or Grid); or describe one as `make_grid` does by resolution, bounds and crs,
            or like.
        chunks: makes it a dask array: "auto", one number for y and x, or per dimension as dask takes it.
        bands: which dimensions of the embedding, e.g. "1-64" (from 1), [0, 5] (from 0) or names; default all.
        out: (H, W, E) or (E, H, W) memory of that dtype with the band fastest, or such a DataArray: filled
            now and returned.
        exact, tolerance: a raster of 10⁵ pixels and more that is finer than the field is interpolated from a
            lattice of it, and the error measured: at most `tolerance` σ of each band, default 1e-4, for
            integers an eighth of a step. The array's attributes say what was found. `exact` never
            interpolates.
        dtype: "float32", or "int8" or "int16", which are computed now: value = code·scale + offset with
            scale and offset, (E,) each, from `scale_offset` or fitted to the raster, and told as coordinates;
            the least code is no data.

        Without `chunks` and `out` the values are computed where they are looked at, and only there: a pixel
        of a 10 m global grid costs milliseconds, `.values` computes all of it. Raises UsageError.
        """
        from satclip_engine.arrays import lazy
        from satclip_engine.lattice.certificate import LEAST_POSITIONS
        from satclip_engine.lattice.choose import placed, planned

        refuse_both(geobox=geobox, like=like)
        chosen = make_grid(
            resolution=resolution, bounds=bounds, crs=crs, like=like if geobox is None else geobox
        )
        encoder = self if bands is None else self.select(bands)
        codes = _code_type(dtype, out)
        if chunks is not None and (out is not None or codes is not None):
            raise UsageError(
                "out and integers are filled at once, chunks is for later: give one of them", argument="out"
            )
        if codes is not None:
            return lazy.coded_array(
                encoder, chosen, codes, out, scale_offset, exact=exact, tolerance=tolerance
            )
        if scale_offset is not None:
            raise UsageError(
                'scale_offset is for integers: give dtype="int8" or "int16" too', argument="scale_offset"
            )
        # Who looks at an array later may look at little of it: the first look should not take long.
        positions = LEAST_POSITIONS if out is None and chunks is None else None
        planned_encoder = planned(encoder, chosen, exact=exact, tolerance=tolerance, positions=positions)
        if out is None:
            return lazy.grid_array(planned_encoder, chosen, chunks=chunks)
        memory = kernel_order(out, (*chosen.shape, encoder.embed_dim))
        planned_encoder.evaluate(placed(planned_encoder, chosen), out=memory)
        return lazy.grid_array(planned_encoder, chosen, data=memory.transpose(2, 0, 1))

    def with_head(self, weight: Any, bias: Any = None, names: Sequence[str] | None = None) -> Encoder:
        """Fold a linear head into the last layer: the new Encoder gives `weight @ embedding + bias`.

        weight: (K, E) real numbers; bias: (K,); names: K band names, default head1, head2, …
        Folded in float64. Raises UsageError naming the shapes.
        """
        layers: Layers | AtlasLayers = self._layers.with_head(
            _real(weight, "weight"), None if bias is None else _real(bias, "bias")
        )
        count = layers.embed_dim
        if names is None:
            names = [f"head{number}" for number in range(1, count + 1)]
        if isinstance(names, str) or len(names) != count:
            raise UsageError(f"a head with {count} outputs needs {count} names, not {names!r}")
        return _rebuild(self._weights, layers, [str(name) for name in names], True, self._how)

    def select(self, bands: Any) -> Encoder:
        """An Encoder with only these outputs.

        "1-64" (from 1), indices or a slice (from 0), or names. Raises UsageError.
        """
        index = parse_bands(bands, self._names)
        layers = self._layers.select(index)
        plan = None if self._plan is None else self._plan.of_bands(np.asarray(index))
        return _rebuild(self._weights, layers, [self._names[i] for i in index], self._head, self._how, plan)


def _rebuild(
    weights: LocationWeights | AtlasWeights,
    layers: Layers | AtlasLayers | None,
    names: Sequence[str],
    head: bool,
    how: dict[str, Any],
    plan: Plan | None = None,
) -> Encoder:
    return Encoder(weights, layers=layers, names=names, head=head, plan=plan, **how)


def _code_type(dtype: Any, out: Any) -> np.dtype[Any] | None:
    """int8 or int16 where codes are asked for by name or by the memory given; None for float32."""
    if dtype is None:
        given = getattr(out, "dtype", None)
        return np.dtype(str(given)) if str(given) in ("int8", "int16") else None
    try:
        kind = np.dtype(dtype)
    except TypeError:
        kind = np.dtype(object)
    if kind.name not in ("float32", "int8", "int16"):
        raise UsageError(f'dtype must be "float32", "int8" or "int16", not {dtype!r}', argument="dtype")
    return None if kind == np.float32 else kind


def _real(values: Any, what: str) -> np.ndarray:
    """A head's numbers as float64. Raises TypeError when they are not real ones."""
    array = np.asarray(values.detach().cpu().double() if is_tensor(values) else values)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"a head's {what} must be real numbers, not {array.dtype}")
    return array.astype(np.float64)
