"""Every backend returns the published embeddings: released layout in, published numbers out.

The trimmed set of tests/data/golden always runs; SATCLIP_GOLDEN=DIR adds the whole set (README there).
Each case prints its largest difference by latitude band, shown by `pytest -rP`.
"""

from __future__ import annotations

import numpy as np
import pytest
from factories.golden import Case, cases, check_golden
from factories.weights import GOLDEN

from satclip_engine import backends, reference

BACKENDS = ("reference", "cpu")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", cases(), ids=str)
def test_published_embeddings_come_out(case: Case, backend: str) -> None:
    prepared = backends.resolve(backend).prepare(case.weights.folded())
    check_golden(prepared.encode, case, float32=backend != "reference")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", cases(), ids=str)
def test_exact_poles_do_not_depend_on_longitude(case: Case, backend: str) -> None:
    lonlat, _, _ = case.table
    prepared = backends.resolve(backend).prepare(case.weights.folded())
    # The features there are equal to the bit; PyTorch's matrix product may round the last ones differently.
    tolerance = 1e-13 if backend == "reference" else 0
    for pole in (-90.0, 90.0):
        values = prepared.encode(lonlat[lonlat[:, 1] == pole])
        assert len(values) > 1
        assert np.abs(values - values[0]).max() <= tolerance


def test_the_two_harmonics_modes_of_an_analytic_checkpoint_with_many_degrees_differ() -> None:
    published = Case(GOLDEN, "L40_analytic_c256_w5", "published", "published")
    exact = Case(GOLDEN, "L40_analytic_c256_w5", "exact", "published")
    check_golden(
        lambda points: reference.encode(points, published.weights.folded()), published, float32=False
    )
    with pytest.raises(AssertionError):
        check_golden(lambda points: reference.encode(points, exact.weights.folded()), exact, float32=False)
