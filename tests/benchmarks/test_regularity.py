"""benchmarks/regularity.py: interpolation is Lagrange's, and rougher fields need finer lattices."""

from __future__ import annotations

import click.testing
import numpy as np
import pytest
import regularity
from regularity import _over_the_poles, gain, lagrange, spacing

from satclip_engine.encoder import load
from satclip_engine.weights import LocationWeights


def test_the_weights_interpolate_polynomials_of_degree_seven_exactly():
    fraction = np.random.default_rng(0).uniform(size=50)
    nodes = np.arange(-3, 5)
    for degree in range(8):
        np.testing.assert_allclose(
            lagrange(fraction) @ nodes.astype(float) ** degree, fraction**degree, atol=1e-10
        )


def test_nodes_beyond_a_pole_lie_on_the_other_side():
    moved = _over_the_poles(np.array([[10.0, 92.0], [10.0, -95.0], [10.0, 89.0]]))
    np.testing.assert_allclose(moved, [[190, 88], [190, -85], [10, 89]])


def test_rougher_fields_need_finer_lattices(tiny_weights):
    rough = {name: value.copy() for name, value in tiny_weights.tensors.items()}
    rough["layers.0.weight"] *= 3
    smooth, other = load(tiny_weights), load(LocationWeights(rough, "orthonormal"))
    assert gain(other) == pytest.approx(3 * gain(smooth))
    assert spacing(other, 1e-3, points=50) < 0.9 * spacing(smooth, 1e-3, points=50)
    assert spacing(smooth, 1e-4, points=50) < spacing(smooth, 1e-3, points=50)


def test_the_command_prints_a_table(tiny_weights, tmp_path):
    tiny_weights.save(tmp_path / "w.safetensors")
    arguments = [str(tmp_path / "w.safetensors"), "--places", "20", "--json", str(tmp_path / "a.json")]
    result = click.testing.CliRunner().invoke(regularity.main, arguments)
    assert result.exit_code == 0, result.output
    assert "| w.safetensors | " in result.output
    assert '"spacing_degrees"' in (tmp_path / "a.json").read_text()
