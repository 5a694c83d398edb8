"""Content of a checkpoint file, whatever its format: names, shapes, conventions, and their checks.

A checkpoint holds one SIREN as `layers.0.weight` (H, L²), `layers.0.bias` (H,), ..., `last_layer.weight` (E,
H) and `last_layer.bias` (E,), under one of network_keys.PREFIXES. The columns of `layers.0.weight` are the
spherical harmonics in order of degree l, then m = -l..l; `convention` says how those harmonics are scaled
(see conventions.column_factors).

lightning_file.py and safetensors_file.py turn files into `Stored` and back with the checks below. Everything
that can be wrong with a file is a WeightsError that names the file, the key, what was expected and found.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

import numpy as np

from satclip_engine.errors import UsageError, WeightsError

Convention = Literal["analytic", "closed-form", "orthonormal"]
Harmonics = Literal["exact", "published"]

CONVENTIONS: Final = get_args(Convention)
HARMONICS: Final = get_args(Harmonics)
MAX_DEGREES: Final = 200
PUBLISHED_W0: Final = (30.0, 1.0)
FORMAT_VERSION: Final = 1
MAX_PLAIN_DEPTH: Final = 32  # of hyper-parameters and other notes: lists within lists
MAX_PLAIN_VALUES: Final = 100_000  # counted as often as they are met: files can share what they nest
MAX_PLAIN_LETTERS: Final = 500_000
_MAX_INTEGER_BITS: Final = 1024  # Python writes no more than 4300 digits as text
_SHOWN_LETTERS: Final = 80  # of a file's value in a message


@dataclass(frozen=True, eq=False)
class Stored:
    """Content of one checkpoint file.

    tensors: by the names above, without prefix, in order of evaluation; float16, float32 or float64 as in the
        file (bfloat16, which NumPy lacks, is widened to float32).
    convention: None when the file names none.
    harmonics: None when the file does not state it.
    w0: sine frequencies of the first and of every further hidden layer.
    extras: further entries of the file (epoch, versions, training notes); plain values only.
    """

    tensors: Mapping[str, np.ndarray]
    convention: Convention | None
    harmonics: Harmonics | None = None
    w0: tuple[float, float] = PUBLISHED_W0
    hyper_parameters: Mapping[str, Any] = field(default_factory=dict)
    extras: Mapping[str, Any] = field(default_factory=dict)


def network_names(tensors: Iterable[str], where: str, prefix: str = "") -> list[str]:
    """Names of the tensors in order of evaluation. Raises WeightsError naming the first that is missing."""
    present = set(tensors)
    hidden = 1 + max((int(name.split(".")[1]) for name in present if name.startswith("layers.")), default=-1)
    if hidden == 0:
        raise WeightsError(
            f"{where}: {prefix}layers.0.weight is missing: expected at least one hidden layer, found none"
        )
    layers = [f"layers.{index}" for index in range(hidden)] + ["last_layer"]
    names = [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    for name in names:
        if name not in present:
            raise WeightsError(f"{where}: {prefix}{name} is missing: found {', '.join(sorted(present)[:6])}")
    return names


def check_modes(*, convention: str | None = None, harmonics: str | None = None) -> None:
    """Raise UsageError for an unknown name; None is any."""
    for name, value, choices in (
        ("convention", convention, CONVENTIONS),
        ("harmonics", harmonics, HARMONICS),
    ):
        if value is not None and value not in choices:
            raise UsageError(f"{name}: expected one of {', '.join(choices)}, got {value!r}", argument=name)


def check_network(tensors: Mapping[str, np.ndarray], where: str, prefix: str = "") -> None:
    """Raise WeightsError unless the tensors form one SIREN on L² features, 1 ≤ L ≤ 200, of finite values."""
    for name in ("layers.0.weight", "last_layer.weight"):
        if tensors[name].ndim != 2:
            shape = shape_text(tensors[name].shape)
            raise WeightsError(f"{where}: {prefix}{name}: expected two dimensions, found shape {shape}")
    capacity, features = tensors["layers.0.weight"].shape
    outputs = tensors["last_layer.weight"].shape[0]
    if math.isqrt(features) ** 2 != features or not 1 <= math.isqrt(features) <= MAX_DEGREES:
        raise WeightsError(
            f"{where}: {prefix}layers.0.weight: expected L² columns with L from 1 to {MAX_DEGREES}, "
            f"found shape {shape_text((capacity, features))}"
        )
    for name, value in tensors.items():
        key = f"{where}: {prefix}{name}"
        rows = outputs if name.startswith("last_layer.") else capacity
        columns = features if name.startswith("layers.0.") else capacity
        expected = (rows, columns) if name.endswith(".weight") else (rows,)
        if value.shape != expected:
            raise WeightsError(
                f"{key}: expected shape {shape_text(expected)}, found {shape_text(value.shape)}"
            )
        _check_values(value, key)


def check_hyper_parameters(
    parameters: Mapping[str, Any], tensors: Mapping[str, np.ndarray], where: str
) -> None:
    """Raise WeightsError when a hyper-parameter contradicts the shapes of the tensors."""
    actual = {
        "legendre_polys": math.isqrt(tensors["layers.0.weight"].shape[1]),
        "capacity": tensors["layers.0.weight"].shape[0],
        "num_hidden_layers": len(tensors) // 2 - 1,
        "embed_dim": tensors["last_layer.weight"].shape[0],
    }
    for name, value in actual.items():
        if parameters.get(name, value) != value:
            raise WeightsError(
                f"{where}: hyper_parameters.{name}: expected {value} as the tensors' shapes say, "
                f"found {shown(parameters[name])}"
            )


def check_architecture(parameters: Mapping[str, Any], where: str) -> None:
    """Raise WeightsError when the hyper-parameters describe another encoder than harmonics into a SIREN."""
    for name, expected in (("le_type", "sphericalharmonics"), ("pe_type", "siren")):
        value = parameters.get(name, expected)
        if value != expected:
            raise WeightsError(
                f"{where}: hyper_parameters.{name}: expected {expected!r}, found {shown(value)}"
            )
    if parameters.get("num_hidden_layers") == 0:
        raise WeightsError(f"{where}: hyper_parameters.num_hidden_layers: expected at least 1, found 0")


def convention_of(value: Any, key: str) -> Convention | None:
    """Check a stored harmonics convention; None stays None."""
    if value is not None and value not in CONVENTIONS:
        raise WeightsError(f"{key}: expected one of {', '.join(CONVENTIONS)}, found {shown(value)}")
    return value


def harmonics_of(value: Any, key: str) -> Harmonics | None:
    """Check a stored harmonics mode; None stays None."""
    if value is not None and value not in HARMONICS:
        raise WeightsError(f"{key}: expected one of {', '.join(HARMONICS)}, found {shown(value)}")
    return value


def w0_of(
    parameters: Mapping[str, Any], where: str, default: tuple[float, float] = PUBLISHED_W0
) -> tuple[float, float]:
    """Sine frequencies (first layer, others): `w0_first`/`w0_hidden`, or SirenNet's `w0_initial`/`w0`."""
    first = parameters.get("w0_first", parameters.get("w0_initial", default[0]))
    hidden = parameters.get("w0_hidden", parameters.get("w0", default[1]))
    return check_frequencies((first, hidden), where)


def check_frequencies(w0: tuple[float, float], where: str) -> tuple[float, float]:
    """Check sine frequencies (first layer, others). Raises WeightsError."""
    if len(w0) != 2:
        raise WeightsError(f"{where}: w0: expected two sine frequencies, found {shown(w0)}")
    return _frequency(w0[0], f"{where}: w0 of the first layer"), _frequency(
        w0[1], f"{where}: w0 of the hidden layers"
    )


def check_version(value: Any, where: str) -> None:
    """Raise WeightsError for a file of a later format than this version knows."""
    if str(value) != str(FORMAT_VERSION):
        raise WeightsError(
            f"{where}: format version {str(value)[:_SHOWN_LETTERS]}: expected {FORMAT_VERSION}, "
            "a newer satclip-engine wrote it"
        )


def parse_json(text: str) -> Any:
    """JSON of which no two readers have another understanding. Raises ValueError, RecursionError."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) < len(items):
            raise ValueError("it names something twice")
        return result

    return json.loads(text, object_pairs_hook=pairs)


def plain(value: Any, where: str = "notes") -> Any:
    """Convert `value` to the types that JSON has; arrays and tensors become lists, anything else its text.

    Raises WeightsError, naming `where`, for what is too deep or too large, as only hostile files are.
    """
    return _Flattening(where).of(value)


class _Flattening:
    """One conversion by `plain`, which counts what it has met."""

    def __init__(self, where: str) -> None:
        self._where, self._values, self._letters = where, 0, 0

    def of(self, value: Any, depth: int = 0) -> Any:
        self._count(1)
        if depth > MAX_PLAIN_DEPTH:
            raise WeightsError(f"{self._where}: nested more than {MAX_PLAIN_DEPTH} deep")
        if isinstance(value, Mapping):
            return {self._text(key): self.of(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.of(item, depth + 1) for item in value]
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, int) and value.bit_length() > _MAX_INTEGER_BITS:
            raise WeightsError(f"{self._where}: holds a number of {value.bit_length()} bits")
        if value is None or isinstance(value, bool | int | float):
            return value
        return self.of(self._listed(value), depth) if hasattr(value, "tolist") else self._text(value)

    def _listed(self, array: Any) -> Any:
        """Values of an array or tensor; a sparse or nested one has none that could be listed."""
        try:
            size = math.prod(array.shape)
            self._count(size)
            self._values -= size  # they are counted again, one by one
            return array.tolist()
        except WeightsError:
            raise
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise WeightsError(
                f"{self._where}: holds a {type(array).__name__} without plain values"
            ) from error

    def _text(self, value: Any) -> str:
        text = str(value)
        self._letters += len(text)
        if self._letters > MAX_PLAIN_LETTERS:
            raise WeightsError(f"{self._where}: more than {MAX_PLAIN_LETTERS} letters of text")
        return text

    def _count(self, values: int) -> None:
        self._values += values
        if self._values > MAX_PLAIN_VALUES:
            raise WeightsError(f"{self._where}: more than {MAX_PLAIN_VALUES} values")


def shown(value: Any) -> str:
    """A file's value as text for a message."""
    text = repr(value)
    return text if len(text) <= _SHOWN_LETTERS else f"{text[:_SHOWN_LETTERS]}…"


def shape_text(shape: tuple[int, ...]) -> str:
    """Spell a shape as (512, 1600), without NumPy's or torch's own types."""
    return "(" + ", ".join(map(str, shape)) + (",)" if len(shape) == 1 else ")")


def _check_values(value: np.ndarray, key: str) -> None:
    if value.dtype not in (np.float16, np.float32, np.float64):
        raise WeightsError(f"{key}: expected float16, float32 or float64 values, found {value.dtype}")
    if value.size == 0:
        raise WeightsError(f"{key}: expected at least one value, found shape {shape_text(value.shape)}")
    finite = np.isfinite(value)
    if not finite.all():
        index = tuple(np.argwhere(~finite)[0].tolist())
        raise WeightsError(f"{key}: expected finite values, found {value[index]} at {list(index)}")


def _frequency(stated: Any, key: str) -> float:
    try:
        value = float(stated)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if isinstance(stated, bool) or not (math.isfinite(value) and value > 0):
        raise WeightsError(f"{key}: expected a positive number, found {shown(stated)}")
    return value
