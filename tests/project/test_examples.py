"""The examples run as they stand."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.skipif(not EXAMPLES.is_dir(), reason="examples are in the repository, not in the package")
def test_the_elevation_map_is_one_band_of_finite_metres(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    table = {
        str(k): {"lon": lon, "lat": lat, "elevation": 1000 + 40 * lat}
        for k, (lon, lat) in enumerate(
            zip(rng.uniform(-180, 180, 900), rng.uniform(-70, 70, 900), strict=True)
        )
    }
    monkeypatch.setitem(sys.modules, "airportsdata", SimpleNamespace(load=lambda key: table))
    monkeypatch.setattr(sys, "argv", ["elevation_map.py", str(tmp_path / "map.tif")])
    spec = importlib.util.spec_from_file_location("elevation_map", EXAMPLES / "elevation_map.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.main()
    assert "R² 0.9" in capsys.readouterr().out  # elevation is linear in latitude here
    with rasterio.open(tmp_path / "map.tif") as dataset:
        assert dataset.descriptions == ("elevation_m",)
        values = dataset.read(1)
    assert np.isfinite(values).all()
    assert values[100].mean() > values[-100].mean()
