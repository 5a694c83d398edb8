"""The preview: where its pixels lie, what colour they have, and how the file comes into being."""

from __future__ import annotations

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from PIL import Image

from satclip_engine.arrays.pca import pca_head
from satclip_engine.encoder import Encoder, load
from satclip_engine.errors import OutputError, UsageError
from satclip_engine.geo.grid import Grid, make_grid
from satclip_engine.preview.map_frame import equal_earth_frame, frame_for, graticule, shortest_arc
from satclip_engine.preview.write import colour, embed_frame, render_preview, write_preview
from satclip_engine.weights import LocationWeights

WORLD = (-180.0, -90.0, 180.0, 90.0)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    rng = np.random.default_rng(1)
    tensors = {
        "layers.0.weight": rng.normal(size=(24, 64)) * 0.02,
        "layers.0.bias": rng.normal(size=24) * 0.1,
        "last_layer.weight": rng.normal(size=(5, 24)),
        "last_layer.bias": rng.normal(size=5),
    }
    return load(LocationWeights(tensors, "orthonormal"))


@pytest.fixture(autouse=True)
def _small_pictures(monkeypatch):
    monkeypatch.setattr("satclip_engine.preview.write.MAP_WIDTH", 300)
    monkeypatch.setattr("satclip_engine.preview.write.MAP_HEIGHT", 240)


def test_pixels_lie_where_proj_has_them():
    from pyproj import Proj

    frame = equal_earth_frame((-60.0, -90.0, 60.0, 90.0), max_width=300, max_height=300)
    inside = frame.coverage == 1
    x, y = Proj("+proj=eqearth +R=1")(frame.lon[inside], frame.lat[inside])
    row, column = np.nonzero(inside)
    pixel = 2 * 1.3173627591574 / frame.shape[0]
    np.testing.assert_allclose(x, (column + 0.5 - frame.shape[1] / 2) * pixel, atol=pixel / 4)
    np.testing.assert_allclose(y, (frame.shape[0] / 2 - row - 0.5) * pixel, atol=pixel / 4)


def test_a_world_map_shows_equal_areas_and_nothing_outside_its_outline():
    frame = equal_earth_frame(WORLD, max_width=900, max_height=900)
    assert frame.shape == (438, 900)
    assert frame.coverage[0, 0] == 0
    assert np.isnan(frame.lon[0, 0])
    north_of_60 = frame.coverage[frame.lat[:, 450] > 60].sum() / frame.coverage.sum()
    assert north_of_60 == pytest.approx((1 - np.sin(np.radians(60))) / 2, rel=0.01)
    inside = frame.coverage == 1
    assert np.abs(frame.lon[inside]).max() <= 180
    assert np.abs(frame.lat[inside]).max() < 90


def test_a_region_across_the_antimeridian_is_centred_on_itself():
    frame = frame_for(make_grid(resolution=0.5, bounds=(174, -23, 184, -14)), max_width=200, max_height=200)
    middle = frame.lon[:, frame.shape[1] // 2]
    np.testing.assert_allclose(middle, 179, atol=0.1)
    assert np.nanmin(frame.lon) >= 174
    assert np.nanmax(frame.lon) <= 184


def test_a_projected_raster_is_drawn_in_its_own_crs_edge_to_edge():
    grid = make_grid(resolution=1000, bounds=(300000, 5000000, 700000, 5200000), crs="EPSG:32633")
    frame = frame_for(grid, max_width=200, max_height=400)
    assert frame.shape == (100, 200)
    assert frame.projection == "EPSG:32633"
    assert (frame.coverage == 1).all()
    expected = grid.lonlat(
        [1], [1]
    )  # the picture's pixels are four of the raster's: centre at its pixel corner (1, 1)
    np.testing.assert_allclose([frame.lon[0, 0], frame.lat[0, 0]], expected[0, 0], atol=0.01)


def test_a_rotated_raster_leaves_the_corners_of_its_picture_empty():
    turn = 1000 * np.sqrt(0.5)
    transform = Affine(turn, turn, 4e5, turn, -turn, 5.2e6)
    frame = frame_for(
        Grid.from_geobox(GeoBox((100, 100), transform, "EPSG:32633")), max_width=100, max_height=100
    )
    assert frame.coverage[0, 0] == frame.coverage[-1, -1] == 0
    assert frame.coverage[50, 50] == 1
    assert frame.coverage.mean() == pytest.approx(0.5, abs=0.02)


def test_a_projection_that_does_not_fill_its_rectangle_is_cut_at_its_outline():
    grid = make_grid(
        resolution=100_000, bounds=(-18_000_000, -9_000_000, 18_000_000, 9_000_000), crs="ESRI:54009"
    )
    frame = frame_for(grid, max_width=360, max_height=360)
    assert frame.coverage[0, 0] == 0
    assert frame.coverage.mean() == pytest.approx(np.pi / 4, abs=0.02)  # an ellipse in its rectangle


def test_a_south_up_raster_is_drawn_north_up():
    south_up = Grid.from_geobox(GeoBox((40, 80), Affine(1, 0, -40, 0, 1, -20), "EPSG:4326"))
    frame = frame_for(south_up, max_width=80, max_height=80)
    assert frame.lat[0, 40] > 19
    assert frame.lat[-1, 40] < -19


@pytest.mark.parametrize(
    "grid",
    [
        {"resolution": 1},
        {"resolution": 0.1, "bounds": (-12, 34, 42, 72)},
        {"resolution": 0.1, "bounds": (174, -23, 184, -14)},
        {"resolution": 25_000, "bounds": (-3e6, -3e6, 3e6, 3e6), "crs": "EPSG:3031"},
        {"resolution": 10_000, "bounds": (3e5, 5e6, 7e5, 5.4e6), "crs": "EPSG:32660"},
    ],
    ids=["world", "region", "antimeridian", "pole", "utm-at-the-date-line"],
)
def test_interpolated_pixels_are_the_encoders_own_values(encoder, grid):
    """Within a colour step: a hundredth of the field's spread at every pixel on the map."""
    frame = frame_for(make_grid(**grid), max_width=600, max_height=480)
    on_map = frame.coverage > 0.99
    field = embed_frame(encoder, frame, 2e-3)
    exact = encoder(np.stack([frame.lon[on_map], frame.lat[on_map]], axis=-1))
    spread = encoder.evaluate(make_grid(resolution=5)).reshape(-1, 5).std(axis=0)
    assert (np.abs(field[on_map] - exact) / spread).max() < 0.01


@pytest.mark.parametrize(
    ("lon", "arc"),
    [
        ([10.0, 20.0], (10.0, 20.0)),
        ([174.0, 184.0], (174.0, 184.0)),
        ([179.5, -179.5], (179.0, 181.0)),
        ([-170.5, 100.5, 170.5], (100.0, 190.0)),
        (list(np.arange(-180.0, 180.0)), (-180.0, 180.0)),
    ],
)
def test_the_shortest_arc_of_longitude_is_found(lon, arc):
    assert shortest_arc(np.array(lon)) == arc


def test_colours_depend_on_the_weights_and_not_on_the_region(encoder):
    """The same place has the same colour in a world map and in a map of its surroundings."""
    head, fit = pca_head(encoder, 3)
    place = (15.3, 48.2)
    seen = []
    for bounds, width in ((WORLD, 900), ((5.0, 40.0, 25.0, 55.0), 300)):
        frame = equal_earth_frame(bounds, max_width=width, max_height=900)
        distance = np.hypot(frame.lon - place[0], frame.lat - place[1])
        at = np.unravel_index(np.nanargmin(distance), frame.shape)
        seen.append(colour(embed_frame(head, frame), fit)[at])
    np.testing.assert_allclose(seen[0], seen[1], atol=0.02)


def test_red_green_and_blue_grow_with_the_first_second_and_third_component(encoder):
    _, fit = pca_head(encoder, 3)
    steps = np.linspace(-1, 1, 9, dtype=np.float32)[:, None, None]
    for band in range(3):
        scores = np.tile((fit.low + fit.high) / 2, (9, 1, 1)).astype(np.float32)
        scores[..., band] += (steps * fit.stddev[band])[..., 0]
        rgb = colour(scores, fit)
        assert (np.diff(rgb[:, 0, band]) > 0).all()
        assert rgb.min() >= 0
        assert rgb.max() <= 1


@pytest.mark.parametrize("bands", [1, 2])
def test_an_embedding_of_fewer_than_three_bands_has_a_picture_too(encoder, bands):
    picture = render_preview(encoder.select(range(bands)), make_grid(resolution=5), title="T", source="S")
    assert picture.mode == "RGB"


def test_a_backend_that_never_interpolates_has_the_same_picture(encoder):
    pictures = [
        np.asarray(render_preview(enc, make_grid(resolution=5), title="T", source="S"), dtype=int)
        for enc in (encoder, load(encoder.weights, backend="reference"))
    ]
    assert np.abs(pictures[0] - pictures[1]).max() <= 1


def test_the_graticule_has_lines_every_thirty_degrees_on_a_world_map_and_closer_on_a_small_one():
    world = graticule(equal_earth_frame(WORLD, max_width=600, max_height=600))
    assert world.lat_step == world.lon_step == 30
    assert [lat for _, _, lat in world.left] == [60, 30, 0, -30, -60]
    assert [lon for _, _, lon in world.bottom] == list(range(-150, 180, 30))
    small = graticule(equal_earth_frame((10, 45, 14, 48), max_width=600, max_height=600))
    assert small.lat_step == 0.5
    assert 0 < small.strength.mean() < 0.1


def test_labels_cross_the_antimeridian():
    frame = frame_for(make_grid(resolution=0.5, bounds=(174, -23, 184, -14)), max_width=400, max_height=400)
    assert [lon for _, _, lon in graticule(frame).bottom] == [176, 178, 180, -178]


def test_the_picture_is_deterministic_and_says_where_it_comes_from(encoder, tmp_path):
    grid = make_grid(resolution=5)
    for name in ("a.png", "b.png"):
        write_preview(encoder, tmp_path / name, grid=grid, title="A title", source="A source · L = 8")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.text["Title"] == "A title"
        assert picture.text["Source"] == "A source · L = 8"
        assert picture.text["Software"].startswith("satclip-engine ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_the_figure_is_near_white_outside_the_map_and_coloured_inside(encoder):
    picture = np.asarray(render_preview(encoder, make_grid(resolution=5), title="T", source="S"), dtype=int)
    assert picture[5, 5].min() > 245
    middle = picture[picture.shape[0] // 2]
    assert (np.ptp(middle, axis=1) > 20).any()


def test_a_map_of_nearly_one_colour_says_so(encoder):
    def inked(resolution: float, bounds: tuple[float, ...]) -> bool:
        """True where something is written between the map's labels and the source."""
        grid = make_grid(resolution=resolution, bounds=bounds)
        picture = np.asarray(render_preview(encoder, grid, title="T", source="S"), dtype=int)
        return bool((picture[-72:-48] < 200).any())

    assert inked(0.0001, (5, 45, 5.01, 45.01))
    assert not inked(1, (-60, 0, 60, 60))


def test_a_title_too_long_for_the_figure_is_shortened_and_unknown_letters_are_replaced(encoder):
    title = "Location embedding · " + "重み" * 300
    picture = render_preview(encoder, make_grid(resolution=5), title=title, source="x" * 900)
    plain = np.asarray(picture, dtype=int)
    assert plain[:, -40:].min() > 245  # nothing runs into the right margin


def test_an_existing_picture_is_kept_unless_it_may_be_overwritten(encoder, tmp_path):
    path = tmp_path / "a.png"
    path.write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        write_preview(encoder, path, grid=make_grid(resolution=5))
    assert path.read_text() == "mine"
    write_preview(encoder, path, grid=make_grid(resolution=5), overwrite=True)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_missing_folder_is_named(encoder, tmp_path):
    with pytest.raises(OutputError, match="there is no folder"):
        write_preview(encoder, tmp_path / "missing" / "a.png", grid=make_grid(resolution=5))


def test_a_picture_that_fails_to_save_leaves_nothing(encoder, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OutputError, match="No space left on device"):
        write_preview(encoder, tmp_path / "a.png", grid=make_grid(resolution=5))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.tif", "a.jpg", "a", "a.png.gz"])
def test_a_picture_has_a_pictures_name(encoder, tmp_path, name):
    with pytest.raises(UsageError, match=r"a preview's name ends in \.png"):
        write_preview(encoder, tmp_path / name, grid=make_grid(resolution=10))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"title": "a\0b"}, "'Title' in title holds the control character"),
        ({"source": "a\x1bb"}, "'Source' in source holds the control character"),
        ({"metadata": {"year": 2024}}, "'year' in metadata must be text, not 2024"),
        ({"metadata": {"note": "\udcff"}}, "'note' in metadata holds characters that are no text"),
        ({"metadata": {"ü": "a"}}, "cannot have the name 'ü'"),
        ({"metadata": {"n" * 80: "a"}}, "1 to 79 letters"),
    ],
)
def test_texts_that_a_picture_cannot_hold_are_refused_before_it_is_drawn(
    encoder, tmp_path, monkeypatch, texts, message
):
    monkeypatch.setattr("satclip_engine.preview.write.render_preview", None)
    with pytest.raises(UsageError, match=message):
        write_preview(encoder, tmp_path / "a.png", grid=make_grid(resolution=10), **texts)


def test_a_picture_that_appears_while_another_is_drawn_stays(encoder, tmp_path, monkeypatch):
    path = tmp_path / "a.png"

    def late(*arguments, **options):
        path.write_text("somebody else's")
        return render_preview(*arguments, **options)

    monkeypatch.setattr("satclip_engine.preview.write.render_preview", late)
    with pytest.raises(OutputError, match=r"a\.png has appeared meanwhile: it is left as it is"):
        write_preview(encoder, path, grid=make_grid(resolution=10))
    assert path.read_text() == "somebody else's"


def test_a_link_in_a_pictures_stead_is_replaced_or_refused_and_never_followed(encoder, tmp_path):
    path, precious = tmp_path / "a.png", tmp_path / "precious"
    precious.write_text("precious")
    path.symlink_to("precious")
    with pytest.raises(OutputError, match=r"exists already .a link to precious."):
        write_preview(encoder, path, grid=make_grid(resolution=10))
    with pytest.warns(UserWarning, match="was a link to precious: the link is replaced"):
        write_preview(encoder, path, grid=make_grid(resolution=10), overwrite=True)
    assert precious.read_text() == "precious"
    with Image.open(path) as picture:
        assert picture.format == "PNG"


def test_titles_of_several_lines_and_control_characters_are_drawn_as_escapes_in_one(encoder):
    grid = make_grid(resolution=30)
    drawn = render_preview(encoder, grid, title="a\x1b[31m\nb", source="c\x00\nd")
    escaped = render_preview(encoder, grid, title=r"a\x1b[31m b", source=r"c\x00 d")
    np.testing.assert_array_equal(np.asarray(drawn), np.asarray(escaped))
