"""Reports of `satclip-grid`: on the terminal, as JSON, in the file's tags and below the picture."""

from __future__ import annotations

import json
import math
import shlex
import shutil
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from satclip_engine import __version__
from satclip_engine.errors import printable
from satclip_engine.geo.crs import crs_name
from satclip_engine.lattice.certificate import up
from satclip_engine.options import GLOBE, SCALES, RasterOptions
from satclip_engine.progress import duration_text, rate_text, size_text

if TYPE_CHECKING:
    from satclip_engine.arrays.pca import GlobalPCA
    from satclip_engine.cli._options import CommandLine
    from satclip_engine.encoder import Encoder
    from satclip_engine.geo.grid import Grid
    from satclip_engine.raster.write import Report

_INDENT = 11  # columns before a summary's text
_MIN_COLUMNS, _MAX_COLUMNS = 40, 80  # of a summary
_OF_BANDS = {"sigma", "max_error", "rms_error", "scale", "offset"}  # in reports: a number for each band


def provenance(options: CommandLine, encoder: Encoder, fit: GlobalPCA | None) -> dict[str, str]:
    """Tags that say where a raster comes from: the same run gives the same tags, so no time and no folder
    names."""
    weights = encoder.weights
    tags = {
        "software": f"satclip-engine {__version__}",
        "command": command_line(options),
        "weights": weights_name(encoder),
        "weights_sha256": weights.sha256,
        "harmonics": weights.harmonics,
        "degrees": str(weights.degrees),
        "backend": f"{encoder.backend} {encoder.isa}",
        **(fit.tags if fit else {}),
    }
    return {name: printable(value) for name, value in tags.items()}


def command_line(options: CommandLine) -> str:
    """The options that decide the pixels, paths cut to names; how the work is done (threads, memory) is
    left out."""
    words = ["satclip-grid", options.output.name, "--weights", _short_name(options.weights)]
    if options.harmonics:
        words += ["--harmonics", options.harmonics]
    if options.convention:
        words += ["--convention", options.convention]
    if options.resolution is not None:
        sizes = options.resolution if isinstance(options.resolution, tuple) else (options.resolution,)
        words += [
            "--resolution",
            ",".join(size if isinstance(size, str) else f"{size:.15g}" for size in sizes),
        ]
    if options.bounds is not None:
        words += ["--bounds", *(f"{edge:.15g}" for edge in options.bounds)]
    if options.bounds_crs is not None:
        words += ["--bounds-crs", options.bounds_crs]
    if options.align:
        words.append("--snap")
    if options.crs is not None:
        words += ["--crs", options.crs]
    if options.like is not None:
        words += ["--like", Path(options.like).name]
    raster = options.raster
    words += ["--dtype", raster.dtype, "--bands", str(options.bands), "--compress", raster.compress]
    if raster.range != GLOBE:
        words += ["--range", Path(raster.range).name]
    if raster.scale != SCALES[0]:
        words += ["--scale", raster.scale]
    if raster.exact:
        words.append("--exact")
    if raster.tolerance is not None:
        words += ["--tolerance", f"{raster.tolerance:g}"]
    if raster.interleave != RasterOptions.interleave:
        words += ["--interleave", raster.interleave]
    if raster.blocksize is not None:
        words += ["--blocksize", str(raster.blocksize)]
    for name, value in _arithmetic(options).items():
        words += [f"--{name}", value]
    return _escaped(shlex.join(words))


def _arithmetic(options: CommandLine) -> dict[str, str]:
    """The options that say who computes and how, without defaults; equal GPUs give equal bits."""
    usual = {"device": "cpu", "backend": "auto", "precision": "exact"}
    chosen = {"device": options.device.kind, "backend": options.backend, "precision": options.precision}
    return {name: value for name, value in chosen.items() if value != usual[name]}


def weights_name(encoder: Encoder) -> str:
    """Name of the weights, without the folder that they lie in."""
    return _escaped(_short_name(encoder.weights.provenance.source))


def preview_title(encoder: Encoder) -> str:
    """The picture's title."""
    count = min(3, encoder.embed_dim)
    words = (
        "first principal component",
        "first two principal components",
        "first three principal components",
    )
    return f"Location embedding · {weights_name(encoder)}, {words[count - 1]}"


def preview_source(encoder: Encoder, grid: Grid) -> str:
    """The line below the picture."""
    weights = encoder.weights
    height, width = grid.shape
    return " · ".join(
        (
            f"weights {weights_name(encoder)} {weights.sha256[:8]}",
            f"{weights.harmonics} harmonics, L = {weights.degrees}",
            f"{width} x {height} pixels of {resolution_text(grid)}",
            crs_name(grid.crs),
            f"satclip-engine {__version__}",
        )
    )


def resolution_text(grid: Grid) -> str:
    """0.25°, 1000 m, or two numbers where pixels are not square."""
    from satclip_engine.geo.crs import unit_name

    transform = grid.transform
    sides = [(transform.a**2 + transform.d**2) ** 0.5, (transform.b**2 + transform.e**2) ** 0.5]
    numbers = list(dict.fromkeys(f"{side:.6g}" for side in sides))
    unit = unit_name(grid.crs.proj)
    return " x ".join(numbers) + {"degree": "°", "metre": " m"}.get(unit, f" {unit}")


def extent_text(grid: Grid) -> str:
    """The outer edges in units of the CRS, as exact as a thousandth of a pixel needs."""
    transform = grid.transform
    step = min(math.hypot(transform.a, transform.d), math.hypot(transform.b, transform.e))
    decimals = max(0, 3 - math.floor(math.log10(step)))
    edges = (f"{round(edge, decimals) + 0.0:.{decimals}f}" for edge in grid.bounds)  # + 0.0: no minus zero
    shown = [edge.rstrip("0").rstrip(".") if "." in edge else edge for edge in edges]
    words = ("west", "south", "east", "north")
    return ", ".join(f"{word} {edge}" for word, edge in zip(words, shown, strict=True))


@dataclass(frozen=True)
class Result:
    """Everything there is to say about a run."""

    options: CommandLine
    encoder: Encoder
    grid: Grid
    report: Report
    fit: GlobalPCA | None
    preview: Path | None
    seconds: float  # of the whole run, the preview included


def as_json(result: Result) -> str:
    """The machine-readable report, one JSON object."""
    encoder, fit, weights = result.encoder, result.fit, result.encoder.weights
    content: dict[str, Any] = {
        **result.report.as_dict(),
        "crs": f"EPSG:{result.grid.crs.epsg}" if result.grid.crs.epsg else result.grid.crs.to_wkt(),
        "transform": [float(value) for value in result.grid.transform[:6]],
        "bounds": list(result.grid.bounds),
        "total_seconds": result.seconds,
        "weights": {
            "source": weights.provenance.source,
            "sha256": weights.sha256,
            "harmonics": weights.harmonics,
            "degrees": weights.degrees,
        },
        "backend": {
            "name": encoder.backend,
            "isa": encoder.isa,
            "device": encoder.device,
            "precision": encoder.precision,
        },
        "pca_explained_variance": [float(share) for share in fit.explained] if fit else None,
        "preview": str(result.preview) if result.preview else None,
        "command": command_line(result.options),
        "version": __version__,
    }
    return for_programs(content, result.options.as_json)


def as_text(result: Result) -> str:
    """The summary for people, a line a subject, within 80 columns as far as names allow."""
    report, grid, weights = result.report, result.grid, result.encoder.weights
    height, width = grid.shape
    complete = was_complete(report)
    lines = [
        ("size", f"{size_text(report.bytes)}, {report.dtype}, {report.compress}"),
        ("grid", f"{width} x {height} pixels of {resolution_text(grid)}, {crs_name(grid.crs)}"),
        ("extent", extent_text(grid)),
        ("bands", _bands_text(result.encoder, result.fit)),
        ("weights", f"{weights_name(result.encoder)} {weights.sha256[:8]}, {weights.harmonics} harmonics"),
    ]
    if not complete:
        lines += [
            ("nodata", _nodata_text(report)),
            ("rounding", _rounding_text(report)),
            *lattice_lines(report.reconstruction),
            ("time", _time_text(result)),
            ("memory", f"{size_text(report.peak_memory)} at most"),
        ]
    if result.options.verbose:
        lines += _details(result)
    if result.preview:
        lines.append(("preview", str(result.preview)))
    return summary(str(result.options.output) + (" is complete already" if complete else ""), lines)


def summary(head: str, lines: list[tuple[str, str]]) -> str:
    """A heading and a line a subject, longer ones continued below between two words; empty ones left out."""
    columns = min(max(shutil.get_terminal_size().columns - 1, _MIN_COLUMNS), _MAX_COLUMNS)
    wrapper = textwrap.TextWrapper(width=columns - _INDENT, break_long_words=False, break_on_hyphens=False)
    text = [head]
    for name, content in lines:
        for number, line in enumerate(wrapper.wrap(content)):
            text.append(f"  {'' if number else name:<8} {line}")
    return "\n".join(text)


def for_programs(content: dict[str, Any], detail: str | None) -> str:
    """JSON of a report: `detail` "full" with the lists that have a number for each band, else without."""
    return json.dumps(content if detail == "full" else _without_bands(content), indent=2, default=str)


def _without_bands(content: Any) -> Any:
    if not isinstance(content, dict):
        return content
    of_bands = {*_OF_BANDS, "bands"} if _OF_BANDS & content.keys() else ()  # their names go with them
    return {name: _without_bands(value) for name, value in content.items() if name not in of_bands}


def lattice_lines(plan: dict[str, Any] | None) -> list[tuple[str, str]]:
    """The lattice and its measured error, for interpolated pixels; nothing when they were evaluated."""
    if plan is None or plan["certificate"] is None:
        return []
    certificate = plan["certificate"]
    cosine = certificate["min_cosine"]  # of a head on an atlas it is not known, and −1
    alike = f", cosine at least 1 - {up(1 - cosine, 1)}" if cosine > 0 else ""
    largest, rms = up(certificate["max_sigma"], 2), up(certificate["rms_sigma"], 1)
    used = f", {100 * certificate['max_tolerance']:.0f} % of the tolerance used" if cosine > 0 else ""
    positions = certificate["positions"] + certificate["further"]
    share, confidence = up(100 * certificate["fraction"], 2), 100 * certificate["confidence"]
    return [
        ("lattice", f"every {plan['spacing']:.3g}° at order {plan['order']}, {plan['nodes']:,} nodes;"),
        ("", f"for {plan['tolerance']}{used}"),
        ("error", f"{largest} σ at most, rms {rms} σ{alike},"),
        ("", f"at {positions:,} positions; beyond that at most {share} % of {_of(certificate)}"),
        ("", f"with {confidence:.2f} % confidence"),
    ]


def _of(certificate: dict[str, Any]) -> str:
    """The whole of which the certificate gives a share: this raster's pixels, but for an atlas."""
    scope = certificate["scope"]
    return "pixels" if scope == "positions" else scope.rstrip(",")


def was_complete(report: Report) -> bool:
    """True where a resumed run finds its raster finished, so that nothing was computed."""
    return report.resumed_from == 1 and not report.cpu_seconds


def _details(result: Result) -> list[tuple[str, str]]:
    """Stages, threads and tiles, for `-v`."""
    report, encoder = result.report, result.encoder
    overviews = ", ".join(f"1/{factor}" for factor in report.overviews) or "none"
    work = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report.cpu_seconds.items())
    stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report.stage_seconds.items())
    return [
        ("backend", f"{encoder.backend} ({encoder.isa}) on {encoder.device}"),
        ("tiles", f"{report.blocksize} pixels, bands by {report.interleave}; overviews {overviews}"),
        ("stages", stages),
        ("work", work),
        ("threads", f"{report.threads}, {100 * report.busy:.0f} % busy" if work else ""),
    ]


def _nodata_text(report: Report) -> str:
    """Share of the raster outside the CRS's domain; nothing when there is none."""
    pixels = report.shape[0] * report.shape[1]
    missing = pixels - (pixels if report.valid_pixels is None else report.valid_pixels)
    return (
        f"{100 * missing / pixels:.2g} % of the pixels lie outside the domain of the CRS" if missing else ""
    )


def _rounding_text(report: Report) -> str:
    """Error of quantising; nothing for floats."""
    if not report.max_quantisation_error:
        return ""
    clipped = report.clipping
    text = f"{report.max_quantisation_error:.2g} at most"
    if not clipped.values:
        return f"{text}, no value clipped"
    return f"{text}; up to {clipped.fraction:.1g} of a band's values clipped, by {clipped.excess:.2g}"


def _time_text(result: Result) -> str:
    report = result.report
    raster = f"raster {duration_text(report.seconds)}, {rate_text(report.pixels_per_second)}"
    text = f"{duration_text(result.seconds)} ({raster})"
    return f"{text}; {100 * report.resumed_from:.0f} % were done before" if report.resumed_from else text


def _bands_text(encoder: Encoder, fit: GlobalPCA | None) -> str:
    if fit is not None:
        shares = ", ".join(f"{100 * share:.0f}" for share in fit.explained[:6])
        more = ", …" if len(fit.explained) > 6 else ""
        return f"{encoder.embed_dim} principal components ({shares}{more} % of the variance)"
    return f"{encoder.embed_dim} of {encoder.weights.embed_dim}"


def _escaped(text: str) -> str:
    """Text in one line for tags, captions and terminals, its control characters as escapes."""
    return printable(text).replace("\n", "\\n")


def _short_name(source: str) -> str:
    return source if "://" in source else Path(source).name
