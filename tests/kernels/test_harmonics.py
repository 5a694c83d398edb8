"""Harmonics columns by the Triton kernels, and the schedules of their recurrences."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from satclip_engine import reference  # noqa: E402
from satclip_engine.kernels.harmonics import harmonic_columns, harmonics  # noqa: E402
from satclip_engine.kernels.recurrence import schedule  # noqa: E402

pytestmark = pytest.mark.triton

SPECIAL = [
    (lon, lat)
    for lat in (90, -90, 90 - 1e-9, -89.999, 60.1, 45, 0)
    for lon in (0, 180, -180, 33.3, 539.5, -1e17)
]


def points(count: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    random = np.stack([rng.uniform(-180, 180, count), np.degrees(np.arcsin(rng.uniform(-1, 1, count)))], 1)
    return np.concatenate([random, SPECIAL])


@pytest.mark.parametrize("degrees", [1, 2, 3, 10, 40, 70])
def test_harmonics_equal_the_reference(degrees: int) -> None:
    values = harmonics(torch.from_numpy(points(21)), degrees)
    # float64 recurrences in different orders of rounding: a few ulp per degree, as for the CPU's.
    assert (
        np.abs(values.numpy() - reference.harmonics(points(21), degrees)).max()
        < 3e-15 * max(degrees, 4) ** 1.5
    )


def test_columns_are_the_harmonics_rounded_once() -> None:
    lonlat = torch.from_numpy(points(5))
    assert torch.equal(harmonic_columns(lonlat, 7, dtype=torch.float32), harmonics(lonlat, 7).T.float())


@pytest.mark.parametrize("degrees", [1, 4])
def test_a_point_that_is_not_finite_has_no_harmonics(degrees: int) -> None:
    lonlat = torch.tensor([[1.0, 2], [math.nan, 2], [1, math.nan], [math.inf, 2], [1, -math.inf]]).double()
    values = harmonics(lonlat, degrees)
    assert torch.isfinite(values[0]).all()
    assert torch.isnan(values[1:]).any(dim=1).all()


@pytest.mark.parametrize("lanes", [1, 4, 16, 32, 64])
@pytest.mark.parametrize("degrees", [1, 2, 10, 40, 200])
def test_a_schedule_makes_every_harmonic_once_and_begins_every_sequence_once(
    degrees: int, lanes: int
) -> None:
    plan = schedule(degrees, lanes, torch.device("cpu"))
    columns = plan.column[plan.column >= 0]
    assert sorted(columns.tolist()) == list(range(degrees**2))
    assert sorted(plan.sequence[plan.sequence >= 0].tolist()) == list(range(2 * degrees - 1))


@pytest.mark.parametrize(("degrees", "lanes", "steps"), [(40, 32, 50), (40, 16, 100), (10, 4, 25)])
def test_no_lane_idles_where_the_sequences_fit(degrees: int, lanes: int, steps: int) -> None:
    assert schedule(degrees, lanes, torch.device("cpu")).steps == steps
