"""Certificates hold: thirty random networks on six rasters, at positions that nobody has looked at before.

The cases are those of benchmarks/reconstruction_check.py, which looks at 10⁵ positions of each; here every
sixth has as many, another of each window for each network, and the others 10⁴.
"""

from __future__ import annotations

import numpy as np
import pytest
from reconstruction_check import MODELS, WINDOWS, Outcome, check, numbered_encoder, row


def positions(number: int, window: str) -> int:
    return 100_000 if number % len(WINDOWS) == list(WINDOWS).index(window) else 10_000


@pytest.mark.parametrize("number", range(MODELS))
@pytest.mark.parametrize("window", WINDOWS)
def test_no_more_positions_err_beyond_the_bound_than_stated(window, number):
    """Where the plan does not interpolate, `check` compares with the exact values bit for bit."""
    outcome = check(number, window, positions(number, window))
    if outcome.interpolates:
        assert outcome.beyond <= outcome.stated
        assert outcome.of_band <= outcome.stated
        assert outcome.of_bound < 10  # what is beyond is not far beyond: these fields have no needles


def test_networks_are_smooth_and_rough_and_so_are_plans():
    found = {number: check(number, "global", 100).interpolates for number in range(0, MODELS, 3)}
    assert set(found.values()) == {True, False}
    degrees = [numbered_encoder(number).weights.degrees for number in range(MODELS)]
    assert (min(degrees), max(degrees)) == (3, 60)
    hidden = {numbered_encoder(number).weights.hidden_layers for number in range(MODELS)}
    assert hidden == {1, 2, 3}


def test_a_certificate_that_says_too_little_is_noticed(monkeypatch):
    """The comparison itself: bounds a third as large are exceeded at more positions than stated."""
    from satclip_engine.lattice import plan as planning

    measure = planning.certify

    def flattering(*arguments, **options):
        certificate, each = measure(*arguments, **options)
        object.__setattr__(certificate, "max_sigma", certificate.max_sigma / 3)
        return certificate, each

    monkeypatch.setattr(planning, "certify", flattering)
    outcomes = [check(number, "UTM", 10_000) for number in (0, 1, 2, 4)]
    assert all(outcome.interpolates for outcome in outcomes)
    assert np.mean([outcome.beyond > outcome.stated for outcome in outcomes]) > 0.5


def test_a_line_of_the_table_has_the_worst_of_its_cases():
    outcomes = [
        Outcome("UTM", False),
        Outcome("UTM", True, 1.5, 0.5, 0.001, 0.002, 0.005),
        Outcome("UTM", True, 0.5, 1.25, 0.002, 0.001, 0.02),
    ]
    assert row(outcomes) == "| UTM | 3 | 2 / 1 | 1.50 | 1.25 | 0.1 % of 0.5 % | 0.2 % of 0.5 % |"
