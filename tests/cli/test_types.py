"""Option values become what the library takes."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from satclip_engine.cli._types import Bands, BandsType, FileType, MemoryType, ResolutionType, SourceType


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1GB", 10**9),
        ("1.5 GiB", 3 * 2**29),
        ("500mb", 500_000_000),
        ("200000000", 200_000_000),
        ("2G", 2 * 10**9),
    ],
)
def test_sizes_have_units(text, size):
    assert MemoryType().convert(text, None, None) == size


def test_a_resolution_is_one_number_or_two():
    kind = ResolutionType()
    assert kind.convert("0.25", None, None) == 0.25
    assert kind.convert("0.5,0.25", None, None) == (0.5, 0.25)
    for text in ("1/12", "30s", "5', 2.5 arcmin", "1km"):  # left to whoever knows the CRS
        assert kind.convert(text, None, None) == text
    for text in ("fine", "1,2,3", "1/12,2,3", "1;2", ""):
        with pytest.raises(click.BadParameter, match="not a pixel's size"):
            kind.convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "bands"),
    [
        ("all", Bands()),
        ("1-64", Bands("1-64")),
        ("1, 5, 9-12", Bands("1,5,9-12")),
        ("pca:3", Bands(pca=3)),
        ("PCA:12", Bands(pca=12)),
    ],
)
def test_bands_are_all_a_list_or_components(text, bands):
    assert BandsType().convert(text, None, None) == bands


def test_suffixes_are_known_in_capitals_too():
    assert FileType((".tif",), "it").convert("A.TIF", None, None) == Path("A.TIF")


@pytest.mark.parametrize("text", ["s3://bucket/a.tif", "/vsis3/bucket/a.tif", "https://host/a.tif"])
def test_files_elsewhere_are_refused_as_they_were_typed(text):
    with pytest.raises(click.BadParameter, match=f"^{text}: files are written to local folders"):
        FileType((".tif",), "it").convert(text, None, None)


@pytest.mark.parametrize("text", ["", "0x5", "1-", "1,,2", "pca", "pca:-1", "e001"])
def test_other_bands_are_refused(text):
    with pytest.raises(click.BadParameter, match="pca:3"):
        BandsType().convert(text, None, None)


def completions(arguments: list[str], incomplete: str) -> list[tuple[str, str]]:
    from click.shell_completion import ShellComplete

    from satclip_engine.cli.grid import main

    shell = ShellComplete(main, {}, "satclip-grid", "_SATCLIP_GRID_COMPLETE")
    return [(item.type, item.value) for item in shell.get_completions(arguments, incomplete)]


@pytest.mark.parametrize("option", [[], ["--like"], ["--weights"], ["--range"], ["--preview"], ["--atlas"]])
def test_shells_complete_names_of_files(option):
    assert ("file", "wo") in completions(option, "wo")


def test_shells_complete_names_of_weights_and_choices():
    assert completions(["--weights"], "def") == [("plain", "default"), ("plain", "default-l10")]
    assert ("plain", "zstd") in completions(["--compress"], "")
    assert completions(["--range"], "gl") == [("plain", "globe")]


def test_names_beside_files_are_known_in_capitals_too():
    kind = SourceType("globe", "window")
    assert [kind.convert(text, None, None) for text in ("Globe", "WINDOW", "A.tif")] == [
        "globe",
        "window",
        "A.tif",
    ]


@pytest.mark.parametrize("path", ["s3://bucket/x.tif", "/vsis3/bucket/x.tif", "https://host/x.tif"])
def test_outputs_elsewhere_are_refused_by_name(path):
    with pytest.raises(click.BadParameter, match="files are written to local folders"):
        FileType((".tif",), "it").convert(path, None, None)
