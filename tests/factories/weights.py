"""Networks made for tests, and what tests ask of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from satclip_engine import reference
from satclip_engine.errors import UsageError, WeightsError
from satclip_engine.weights import LocationWeights, read_weights

torch = pytest.importorskip("torch")

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
SUFFIXES = (".ckpt", ".safetensors")
CONVENTIONS = ("analytic", "closed-form", "orthonormal")
PLACES = np.array([(0.0, 0.0), (12.3, 45.6), (-170.0, -80.0), (99.0, 89.5), (0.0, -90.0), (361.0, 20.0)])


def tensors(
    degrees: int = 3,
    hidden: int = 2,
    capacity: int = 4,
    outputs: int = 3,
    dtype: Any = np.float64,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """A random network of that shape whose sines see arguments of order one."""
    rng = np.random.default_rng(seed)
    widths = [degrees**2, *[capacity] * hidden, outputs]
    found = {}
    for index, (into, out) in enumerate(pairwise(widths)):
        name = f"layers.{index}" if index < hidden else "last_layer"
        found[f"{name}.weight"] = (rng.normal(size=(out, into)) / into).astype(dtype)
        found[f"{name}.bias"] = rng.normal(size=out).astype(dtype)
    return found


def make(convention: str = "orthonormal", harmonics: str = "exact", **shape: Any) -> LocationWeights:
    return LocationWeights(tensors(**shape), convention, harmonics)  # type: ignore[arg-type]


def assert_same(found: LocationWeights, expected: LocationWeights) -> None:
    """Equal to the bit: tensors with their dtype, convention, harmonics, sine frequencies."""
    assert list(found.tensors) == list(expected.tensors)
    for name, value in expected.tensors.items():
        assert found.tensors[name].dtype == value.dtype, name
        assert found.tensors[name].tobytes() == value.tobytes(), name
    assert (found.convention, found.harmonics, found.w0) == (
        expected.convention,
        expected.harmonics,
        expected.w0,
    )
    assert found.sha256 == expected.sha256


def embeddings(weights: LocationWeights) -> np.ndarray:
    return reference.encode(PLACES, weights.folded())


def save_ckpt(path: Path, state: Mapping[str, Any], **hyper_parameters: Any) -> Path:
    torch.save({"state_dict": dict(state), "hyper_parameters": hyper_parameters}, path)
    return path


def as_state(values: Mapping[str, np.ndarray], prefix: str = "model.location.nnet.") -> dict[str, Any]:
    return {prefix + name: torch.from_numpy(np.array(value)) for name, value in values.items()}


def refusal(path: Path) -> str:
    """The one line with which a file is refused; it begins with the file."""
    with pytest.raises(WeightsError) as error:
        read_weights(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def attempt(path: Path) -> LocationWeights | str:
    """The weights, or the line with which they are refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return read_weights(path)
        except (WeightsError, UsageError) as error:
            return str(error)
