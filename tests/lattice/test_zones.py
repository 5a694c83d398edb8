"""Zones: every latitude in one of them, positions exact over any number of turns, nodes beyond the poles."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from satclip_engine import _C
from satclip_engine.lattice.nodes import EncodedNodes
from satclip_engine.lattice.prepared import PreparedLattice
from satclip_engine.lattice.zones import EDGES, Zone, make_zones, zone_of

RELAXED = settings(deadline=None)
TICK = 2.0**-28  # of a node, to which positions are rounded
ORDERS = st.sampled_from([4, 6, 8, 10, 12])
SPACINGS = st.floats(0.01, 40)
LATITUDES = st.one_of(
    st.floats(-90, 90), st.sampled_from([-90.0, 90.0, 0.0, -0.0, *EDGES, *(-edge for edge in EDGES)])
)
# As pixels of grids have them: whole turns can be added to them without rounding.
LONGITUDES = st.integers(-180 * 2**40, 180 * 2**40).map(lambda ticks: ticks * 2.0**-40)
ZONES = st.builds(
    Zone,
    south=st.just(-90.0),
    north=st.just(90.0),
    rows=st.integers(12, 1 << 20),
    columns=st.integers(12, 1 << 20),
    order=ORDERS,
)


@RELAXED
@given(SPACINGS, ORDERS, LATITUDES)
def test_a_latitude_lies_in_one_zone(spacing, order, lat):
    zones = make_zones(spacing, order)
    holding = [k for k, zone in enumerate(zones) if zone.south <= lat < zone.north]
    if lat == 90.0:
        holding = [len(zones) - 1]
    assert [int(zone_of(zones, np.array([lat]))[0])] == holding


@RELAXED
@given(SPACINGS, ORDERS, LATITUDES, LATITUDES, LATITUDES)
def test_some_zones_cover_the_latitudes_they_were_made_for(spacing, order, south, north, lat):
    assume(south <= north)
    zones = make_zones(spacing, order, south, north)
    assert all(a.north == b.south for a, b in itertools.pairwise(zones))
    found = int(zone_of(zones, np.array([lat]))[0])
    if south <= lat <= north:
        assert found >= 0
    if found >= 0:
        assert zones[found].south <= lat <= zones[found].north
    else:
        assert lat < zones[0].south or lat >= zones[-1].north


def test_what_is_no_latitude_lies_in_no_zone():
    lat = np.array([np.nan, np.inf, -np.inf, np.nextafter(90, 91), -91.0])
    assert (zone_of(make_zones(5, 8), lat) == -1).all()


@RELAXED
@given(SPACINGS, ORDERS)
@example(0.1, 12)
@example(1 / 3, 4)
def test_nodes_are_nowhere_farther_apart_than_asked(spacing, order):
    zones = make_zones(spacing, order)
    for zone in zones:
        lat = np.linspace(zone.south, zone.north, 200)
        assert zone.lat_step <= spacing * (1 + 1e-9)
        assert (zone.lon_step * np.cos(np.radians(lat))).max() <= spacing * (1 + 1e-9)
        assert min(zone.rows, zone.columns) >= order
    columns = [zone.columns for zone in zones]
    assert columns == columns[::-1], "north and south alike"
    assert columns[: len(columns) // 2 + 1] == sorted(columns[: len(columns) // 2 + 1])


@RELAXED
@given(ZONES, st.floats(-1e4, 1e4), st.floats(-90, 90))
@example(Zone(-90, 90, 180, 360, 8), -1e-20, -0.0)
@example(Zone(-90, 90, 180, 360, 8), float(np.nextafter(-180, -181)), 90.0)
def test_positions_are_the_places_in_nodes(zone, lon, lat):
    row, column = zone.row_positions(np.array([lat]))[0], zone.column_positions(np.array([lon]))[0]
    true_row = (Fraction(lat) + 90) * zone.rows / 180
    true_column = (Fraction(lon) + 180) * zone.columns / 360
    off = (Fraction(float(column)) - true_column) % zone.columns
    # Three roundings of float64 beside the tick: the sum, the factor, the product.
    assert abs(Fraction(float(row)) - true_row) <= TICK / 2 + 3e-16 * zone.rows
    near = TICK / 2 + 3e-16 * zone.columns * (1 + abs(lon) / 180)
    assert min(off, zone.columns - off) <= near
    assert 0 <= column < zone.columns
    assert 0 <= row <= zone.rows


@RELAXED
@given(ZONES, LONGITUDES, st.integers(-8, 8))
@example(Zone(-90, 90, 180, 360, 8), 180.0, -1)
@example(Zone(-90, 90, 180, 360, 8), -0.0, 0)
def test_a_longitude_has_the_same_position_on_every_turn(zone, lon, turns):
    here, there = zone.column_positions(np.array([lon, lon + 360 * turns]))
    assert here == there
    for turn in (-zone.columns, zone.columns):
        assert (here + turn) - turn == here, "adding a turn rounds"


@RELAXED
@given(ZONES)
def test_poles_and_zero_have_exact_positions(zone):
    assert zone.row_positions(np.array([-90.0, 90.0])).tolist() == [0.0, zone.rows]
    assert zone.column_positions(np.array([-180.0, 180.0])).tolist() == [0.0, 0.0]
    for positions in (zone.row_positions, zone.column_positions):
        assert np.ptp(positions(np.array([0.0, -0.0]))) == 0


@RELAXED
@given(ZONES, st.integers(0, 11))
def test_rows_beyond_a_pole_are_those_before_it_half_a_turn_on(zone, k):
    for beyond, before in ((-k, k), (zone.rows + k, zone.rows - k)):
        lat, over = zone.node_lat(np.array([before, beyond]))
        assert lat[0] == pytest.approx(lat[1], abs=1e-12)
        assert over.tolist() == [False, k > 0]
        assert np.abs(lat).max() <= 90


@RELAXED
@given(ZONES, st.integers(-100, 100), st.integers(-3, 3))
def test_a_node_has_one_longitude_and_lies_at_its_own_position(zone, column, turns):
    lon = zone.node_lon(np.array([column, column + turns * zone.columns]))
    assert lon[0] == lon[1]
    assert -180 <= lon[0] < 180
    off = zone.column_positions(lon)[0] - column % zone.columns
    assert min(abs(off), zone.columns - abs(off)) <= 1e-15 * zone.columns + TICK


@RELAXED
@given(ORDERS, st.lists(st.integers(-(2**38), 2**38), min_size=1, max_size=5))
@example(8, [-1])
@example(8, [0])
def test_reach_is_just_what_stencils_need(order, ticks):
    positions = np.array(ticks) * TICK
    reach = Zone(-90, 90, 180, 360, order).stencil_range(positions.min(), positions.max())
    lattice, out = np.zeros((len(reach), order, 1), np.float32), np.empty((positions.size, 1), np.float32)
    middle = np.full(positions.size, order // 2 - 1.0)
    _C.resample_points(lattice, positions - reach.start, middle, out, order=order)
    for less, start in ((lattice[1:], reach.start + 1), (lattice[:-1], reach.start)):
        with pytest.raises(ValueError, match="needs"):
            _C.resample_points(less, positions - start, middle, out, order=order)


@RELAXED
@given(LONGITUDES, st.integers(-8, 8), LATITUDES)
@example(180.0, -1, 90.0)
@example(-0.0, 1, -0.0)
def test_values_have_the_same_bits_on_every_turn(prepared, lon, turns, lat):
    places = np.array([[lon, lat], [lon + 360 * turns, lat], [lon, lat + 0.0]])
    single = prepared.encode(places)
    assert np.array_equal(single[0], single[1])
    row = prepared.encode_grid(np.array([lat]), places[:, 0])[0]
    assert np.array_equal(row[0], row[1])
    assert np.abs(row - single).max() < 1e-5 * np.abs(single).max()


@pytest.fixture(scope="module")
def prepared(smooth) -> PreparedLattice:
    zones = make_zones(3.0, 8)
    return PreparedLattice(smooth.network, zones, EncodedNodes(smooth.network, zones))


def test_a_pole_is_one_place(prepared):
    lon = np.linspace(-720, 720, 97)
    for lat in (-90.0, 90.0):
        single = prepared.encode(np.stack([lon, np.full(97, lat)], axis=-1))
        row = prepared.encode_grid(np.array([lat]), lon)[0]
        assert (single == single[0]).all()
        assert (row == row[0]).all()
        exact = prepared.network.encode(np.array([[0.0, lat]]))
        assert np.abs(row[0] - exact).max() < 1e-2
