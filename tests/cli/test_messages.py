"""Messages name arguments as their reader types them: options on the command line, keywords in Python."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from pathlib import Path

import click
import pytest
import rasterio
from factories.cli_runs import SMALL, assert_one_line, run

import satclip_engine as se
from satclip_engine import backends, errors, options
from satclip_engine.atlas.write import write_atlas
from satclip_engine.backends import protocols
from satclip_engine.cli.grid import main
from satclip_engine.errors import Argument, MissingExtra, OutputError, SatclipError, UsageError
from satclip_engine.options import RasterOptions, option_fields
from satclip_engine.progress import Silence
from satclip_engine.quantize import SAMPLE_TYPES
from satclip_engine.raster.codec import CODECS
from satclip_engine.raster.write import write_raster
from satclip_engine.weights.schema import CONVENTIONS, HARMONICS

PYTHON_WORDS = re.compile(r"\b[a-z_]+=(True|False|None|'|\")|\benc\.|\bresume=|\bexact=|\boverwrite=")

# A wrong value of every option, and of those that are wrong together.
WRONG = {
    "convention": [["--convention", "legendre"], ["--convention", "analytic"]],
    "weights": [["--weights", "nosuch"], ["--weights", "hf://nosuch"]],
    "harmonics": [["--harmonics", "closed"]],
    "resolution": [
        ["--resolution", "0"],
        ["--resolution", "0.7"],
        ["--resolution", "1e-9"],
        ["--resolution", "1,2,3"],
        ["--resolution", "30m"],
        ["--resolution", "30s", "--crs", "EPSG:32633"],
        ["--crs", "EPSG:32633"],
        ["--bounds", "0", "0", "10", "10", "--resolution", "0.7"],
    ],
    "bounds": [
        ["--bounds", "10", "0", "0", "10"],
        ["--bounds", "0", "10", "10", "0"],
        ["--bounds", "0", "0", "10", "95"],
        ["--bounds", "0", "0", "nan", "9"],
        ["--bounds", "3e5", "5e6", "4e5", "6e6"],
        ["--bounds", "45,100,50,120"],
        ["--bounds", "1,2,3"],
        ["--bounds", "10", "45", "12", "47", "--crs", "EPSG:32633", "--resolution", "1000"],
    ],
    "bounds_crs": [
        ["--bounds-crs", "EPSG:99999", "--bounds", "0", "0", "9", "9"],
        ["--bounds-crs", "EPSG:4326"],
        ["--bounds-crs", "EPSG:4326", "--like", "b.tif"],
    ],
    "align": [["--snap"], ["--snap", "--like", "b.tif"]],
    "crs": [
        ["--crs", "EPSG:99999"],
        ["--crs", "EPSG:4978"],
        ["--crs", "+proj=tmerc", "--resolution", "1000"],
        ["--crs", "+proj=longlat +a=1737400 +b=1737400", "--resolution", "10"],
    ],
    "like": [
        ["--like", "nosuch.tif"],
        ["--like", "plain.png"],
        ["--like", "nosuch.tif", "--resolution", "1"],
    ],
    "dtype": [["--dtype", "int7"]],
    "range": [
        ["--range", "nosuch"],
        ["--range", "plain.png"],
        ["--range", "window", "--dtype", "float32"],
        ["--range", "nosuch.json"],
    ],
    "scale": [["--scale", "pixel"], ["--scale", "common", "--dtype", "float16"]],
    "bands": [["--bands", "0-3"], ["--bands", "2,2"], ["--bands", "7"], ["--bands", "pca:7"]],
    "interleave": [["--interleave", "line"]],
    "compress": [["--compress", "lzw"], ["--compress", "lerc", "--dtype", "float16"]],
    "blocksize": [
        ["--blocksize", "100"],
        ["--blocksize", "2048"],
        ["--blocksize", "16", "--resolution", "0.01"],
    ],
    "threads": [["--threads", "0"]],
    "memory": [["--memory", "3XB"], ["--memory", "1KB"]],
    "tolerance": [["--tolerance", "0"], ["--tolerance", "nan"], ["--tolerance", "1", "--exact"]],
    "device": [["--device", "gpu"], ["--device", "cuda:99"]],
    "backend": [["--backend", "gpu"], ["--backend", "cpu", "--device", "cuda"]],
    "precision": [["--precision", "half"]],
    "overwrite": [["--overwrite", "--resume"]],
    "resume": [["--overwrite", "--resume"]],
    "exact": [["--exact", "--tolerance", "1"]],
    "preview": [["--preview", "a.jpg"], ["--preview", "a.png", "--no-preview"]],
    "no_preview": [["--preview", "a.png", "--no-preview"]],
    "atlas": [["--atlas", "a.zarr"]],
    "verbose": [["-v", "-q"]],
    "quiet": [["-v", "-q"]],
}
NEVER_WRONG = {"output", "plan", "as_json", "version", "help"}
CASES = [(name, args) for name, runs in WRONG.items() for args in runs]


@pytest.fixture
def pictures(folder) -> Path:
    from PIL import Image

    Image.new("L", (8, 8)).save("plain.png")
    return folder


def test_every_option_has_a_wrong_value_here():
    assert {parameter.name for parameter in main.params} - NEVER_WRONG == set(WRONG)


@pytest.mark.parametrize(
    ("name", "args"), CASES, ids=lambda value: " ".join(value) if isinstance(value, list) else value
)
def test_a_wrong_value_is_one_line_that_names_its_option(pictures, weights, name, args):
    if name == "device":
        pytest.importorskip("torch")
    chosen = [] if "--weights" in args else ["--weights", weights]
    size = [] if {"--resolution", "--crs", "--bounds", "--like"} & set(args) else SMALL
    option = max(next(parameter for parameter in main.params if parameter.name == name).opts, key=len)
    option = {"--verbose": "-v", "--quiet": "-q"}.get(option, option)
    result = run("a.tif", *chosen, *size, *args)
    assert_one_line(result, 2, option)
    assert not PYTHON_WORDS.search(result.stderr), result.stderr
    assert not re.search(r"(?<!-)\b(overwrite|resume)\b(?!d)", result.stderr), result.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--blocksize", 16, "--resolution", 0.01],
            r"18000 × 36000 pixels of 6 bands make .* tiles of 16 pixels; .* use a coarser --resolution, "
            r"a larger --blocksize \(up to 1024\), fewer --bands, --interleave pixel, or several files",
        ),
        (
            ["--dtype", "float16", "--compress", "lerc"],
            "--compress lerc cannot hold float16: use --dtype float32 or --compress zstd",
        ),
        (["--overwrite", "--resume"], "--overwrite and --resume are mutually exclusive: give one of them"),
        (["--exact", "--tolerance", 1], "--exact and --tolerance are mutually exclusive: give one of them"),
        (
            ["--preview", "a.png", "--no-preview"],
            "--preview and --no-preview are mutually exclusive: give one of them",
        ),
        (["-v", "-q"], "-v and -q are mutually exclusive: give one of them"),
        (["--like", "b.tif", "--resolution", 1], "--like already fixes the grid: leave out --resolution"),
        (
            ["--crs", "EPSG:32633", "--resolution", 1000, "--bounds", "10,45,12,47"],
            "--bounds 10 45 12 47 look like degrees, .* metres: give --bounds-crs EPSG:4326 too",
        ),
        (
            ["--bounds", "0,0,1,1", "--resolution", "0.3"],
            r".*with --bounds 0 0 1\.2 1\.2; or widen them to whole pixels by --snap",
        ),
        (
            ["--crs", "EPSG:3857", "--resolution", 1e6, "--bounds", 3e7, 0, 4e7, 1e7],
            "none of the 10 × 10 pixels lies on Earth: .*; choose other --bounds",
        ),
        (["--tolerance", 1e-9], "--tolerance 1e-09 σ is below .*; give that or more, or use --exact"),
        (["--crs", "+proj=tmerc", "--resolution", 9], "--crs: CRS .* has no area of use: give --bounds .*"),
    ],
)
def test_the_way_out_is_an_option_too(folder, weights, args, message):
    size = [] if {"--resolution", "--like"} & set(map(str, args)) else SMALL
    result = run("a.tif", "--weights", weights, *size, *args)
    last = result.stderr.splitlines()[-1].removeprefix("satclip-grid: ").removeprefix("Error: ")
    assert re.fullmatch(message, last), result.stderr


def test_weights_that_do_not_say_what_they_are_need_the_option(folder, weights):
    from safetensors.numpy import load_file, save_file

    save_file(load_file(weights), "bare.safetensors")  # the tensors without their metadata
    result = run("a.tif", "--weights", "bare.safetensors", *SMALL, "--no-preview")
    assert_one_line(result, 1, "give --convention analytic")
    named = ("--weights", "bare.safetensors", "--convention", "orthonormal", "--no-preview", "-q")
    assert run("a.tif", *named, *SMALL).exit_code == 0
    with rasterio.open("a.tif") as raster:
        assert "--convention orthonormal" in raster.tags()["command"]
        assert raster.tags()["weights_sha256"] == se.load(weights).weights.sha256


def test_an_output_that_exists_and_differs_says_which_option_replaces_it(folder, weights):
    assert run("a.tif", "--weights", weights, *SMALL, "--no-preview", "-q").exit_code == 0
    other = ["--weights", weights, "--resolution", 20, "--no-preview", "-q"]
    assert_one_line(run("a.tif", *other), 1, "a.tif exists already", "use --overwrite\n")
    assert_one_line(run("a.tif", *other, "--resume"), 1, "it differs", "use --overwrite\n")


@pytest.fixture(scope="module")
def encoder(weights) -> se.Encoder:
    return se.load(weights)


def _grid(**arguments: object) -> se.Grid:
    return se.make_grid(**{"resolution": 10, **arguments})


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("source", lambda enc: se.load("nosuch")),
        ("harmonics", lambda enc: se.load("default-l10", harmonics="closed")),
        ("device", lambda enc: se.load("default-l10", device="gpu")),
        ("backend", lambda enc: se.load("default-l10", backend="gpu")),
        ("backend", lambda enc: se.load("default-l10", backend="cpu", device="cuda")),
        ("precision", lambda enc: se.load("default-l10", backend="triton", precision="half")),
        ("threads", lambda enc: se.load("default-l10", threads=0)),
        ("resolution", lambda enc: _grid(resolution=0)),
        ("resolution", lambda enc: _grid(resolution=0.7)),
        ("resolution", lambda enc: _grid(resolution=None, crs="EPSG:32633")),
        ("bounds", lambda enc: _grid(bounds=(0, 0, 10, 95))),
        ("crs", lambda enc: _grid(crs="EPSG:99999")),
        ("crs", lambda enc: _grid(crs="+proj=tmerc")),
        ("like", lambda enc: _grid(like="nosuch.tif")),
        ("like", lambda enc: _grid(resolution=None, like="nosuch.tif")),
        ("like", lambda enc: _grid(resolution=None, like=3)),
        ("bands", lambda enc: enc.select("0-3")),
        ("tolerance", lambda enc: enc.grid(_grid(), tolerance=-1)),
        ("tolerance", lambda enc: enc.grid(_grid(), tolerance=1e-9)),
        ("tolerance", lambda enc: enc.grid(_grid(), tolerance=1, exact=True)),
        ("out", lambda enc: enc.grid(_grid(), out=[])),
        ("dtype", lambda enc: write_raster(enc, "a.tif", _grid(), dtype="int7")),
        ("interleave", lambda enc: write_raster(enc, "a.tif", _grid(), interleave="line")),
        ("compress", lambda enc: write_raster(enc, "a.tif", _grid(), compress="lzw")),
        ("compress", lambda enc: write_raster(enc, "a.tif", _grid(), compress="lerc", dtype="float16")),
        ("blocksize", lambda enc: write_raster(enc, "a.tif", _grid(), blocksize=100)),
        ("blocksize", lambda enc: write_raster(enc, "a.tif", _grid(resolution=0.01), blocksize=16)),
        ("threads", lambda enc: write_raster(enc, "a.tif", _grid(), threads=0)),
        ("memory", lambda enc: write_raster(enc, "a.tif", _grid(), memory=1000)),
        ("resume", lambda enc: write_raster(enc, "a.tif", _grid(), overwrite=True, resume=True)),
        ("tolerance", lambda enc: write_raster(enc, "a.tif", _grid(), tolerance=1, exact=True)),
        ("grid", lambda enc: write_raster(enc, "a.tif", "nosuch.tif")),
        ("path", lambda enc: write_atlas(enc, "a.tif")),
        ("dtype", lambda enc: write_atlas(enc, "a.zarr", dtype="int8")),
        ("tolerance", lambda enc: write_atlas(enc, "a.zarr", tolerance=1e-9)),
    ],
)
def test_in_python_an_error_carries_its_argument_and_speaks_of_no_options(folder, encoder, argument, call):
    with pytest.raises(SatclipError) as caught:
        call(encoder)
    assert caught.value.argument == argument
    assert "--" not in str(caught.value)


def test_an_output_that_exists_names_the_keyword_that_replaces_it(folder, encoder):
    Path("a.tif").write_text("mine")
    with pytest.raises(OutputError, match=r"or use overwrite=True$"):
        write_raster(encoder, "a.tif", _grid())


@pytest.mark.parametrize(
    "kind", [UsageError, OutputError, MissingExtra, errors.WeightsError, errors.DataError]
)
def test_an_error_keeps_message_and_argument_when_it_is_pickled_or_copied(kind):
    error = kind("a {name}: use ", Argument("overwrite", True), argument="path")
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is kind
        assert str(twin) == str(error) == "a {name}: use overwrite=True"
        assert twin.argument == "path"
        assert [str(piece) for piece in twin.message] == ["a {name}: use ", "overwrite=True"]
        assert twin.worded(lambda piece: f"--{piece.name}") == error.worded(lambda piece: f"--{piece.name}")
    assert str(kind("plain")) == "plain"
    assert kind("plain").argument is None


def test_an_option_is_put_before_a_message_that_does_not_begin_with_it():
    def option(argument: Argument) -> str | None:
        return None if argument.name == "grid" else f"--{argument.name}"

    def worded(*message: object, argument: str | None) -> str:
        return UsageError(*message, argument=argument).worded(option)

    assert worded("size must be whole", argument="size") == "--size must be whole"
    assert worded("size: 3", argument="size") == "--size: 3"
    assert worded("sizes are 3", argument="size") == "--size: sizes are 3"
    assert worded("3 is odd", argument="size") == "--size: 3 is odd"
    assert worded("3 is odd for ", Argument("size"), argument="size") == "3 is odd for --size"
    assert worded("3 is odd: give ", Argument("side", 4), argument="grid") == "3 is odd: give --side"
    assert worded("use ", Argument("grid", 4), argument=None) == "use grid=4"


def test_choices_are_those_of_the_librarys_tables():
    assert options.BACKENDS == backends.NAMES
    assert options.PRECISIONS == protocols.PRECISIONS
    assert options.HARMONICS == HARMONICS
    assert options.CONVENTIONS == CONVENTIONS
    assert tuple(SAMPLE_TYPES) == options.DTYPES
    assert tuple(CODECS) == options.COMPRESSIONS


def test_write_raster_takes_the_fields_of_its_options_with_their_defaults():
    keywords = {
        name: parameter.default
        for name, parameter in inspect.signature(write_raster).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    assert list(keywords) == list(inspect.signature(RasterOptions).parameters)
    defaults = RasterOptions()
    assert {name: keywords[name] for name in option_fields()} == {
        name: getattr(defaults, name) for name in option_fields()
    }
    assert (keywords["tags"], keywords["progress"]) == (None, None)
    assert isinstance(defaults.progress, Silence)


def test_the_command_line_offers_every_field_with_its_help_and_default():
    context = click.Context(main)
    offered = {parameter.name: parameter for parameter in main.params}
    for name, entry in option_fields().items():
        parameter = offered[name]
        assert parameter.help == entry.metadata["help"]
        default = parameter.get_default(context)
        value = None if default is None else parameter.type_cast_value(context, default)
        assert value == entry.default, name


def test_the_document_speaks_of_every_option():
    text = (Path(__file__).parents[2] / "docs" / "satclip-grid.md").read_text()
    known = {option for parameter in main.params for option in parameter.opts} | {"--help"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) <= known
    for name in option_fields():
        assert f"--{name}" in text, name
