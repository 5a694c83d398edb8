"""Statements: what a state dictionary says about its network beside the tensors.

Names and shapes of the tensors are the same in every convention, so a state dictionary of LocationEncoder has
one entry more, `_extra_state`: JSON in ASCII, as numbers from 0 to 255, padded to one length, so that a
checkpoint of many files (torch.distributed.checkpoint) is read in place whatever it states.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from satclip_engine.errors import WeightsError
from satclip_engine.weights.conventions import column_factors, fold_published, folds_published
from satclip_engine.weights.schema import (
    FORMAT_VERSION,
    PUBLISHED_W0,
    Convention,
    Harmonics,
    check_version,
    convention_of,
    harmonics_of,
    w0_of,
)

STATEMENT_KEY: Final = "_extra_state"  # torch's own name for what get_extra_state returns
_STATEMENT_BYTES: Final = 160  # two frequencies of 24 digits, and all else, fit


@dataclass(frozen=True)
class Statement:
    """All that decides the function beside the tensors; see LocationWeights."""

    convention: Convention
    harmonics: Harmonics = "exact"
    w0: tuple[float, float] = PUBLISHED_W0

    def encoded(self) -> np.ndarray:  # (160,) uint8
        """Numbers to keep among the tensors."""
        content = {
            "format": FORMAT_VERSION,
            "convention": self.convention,
            "harmonics": self.harmonics,
            "w0": [float(frequency) for frequency in self.w0],
        }
        return np.frombuffer(json.dumps(content).encode().ljust(_STATEMENT_BYTES), np.uint8).copy()

    def __str__(self) -> str:
        return f"{self.convention}, harmonics {self.harmonics}, w0 {self.w0}"

    def same_function(self, other: Statement, degrees: int) -> bool:
        """True where weights of L = degrees mean the same under both."""
        mine, theirs = (
            (entry.convention, folds_published(degrees, entry.convention, entry.harmonics), entry.w0)
            for entry in (self, other)
        )
        return mine == theirs


def decode_statement(values: np.ndarray, key: str) -> Statement:
    """Read a statement; values may have been cast to floating point with the tensors around them.

    Raises WeightsError for anything else: numbers that were averaged as weights are, a later format.
    """
    damaged = WeightsError(
        f"{key}: damaged: expected the JSON that LocationEncoder states its convention in "
        "(was it averaged or scaled like a weight?)"
    )
    numbers = np.asarray(values)
    sound = numbers.dtype.kind in "uif" and numbers.ndim == 1 and numbers.size <= 2 * _STATEMENT_BYTES
    if not sound or not np.isin(numbers, np.arange(128)).all():
        raise damaged
    try:
        content = json.loads(numbers.astype(np.uint8).tobytes())
        first, hidden = content["w0"]
        convention, harmonics = content["convention"], content["harmonics"]
        check_version(content["format"], key)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise error if isinstance(error, WeightsError) else damaged from error
    if not (isinstance(convention, str) and isinstance(harmonics, str)):
        raise damaged
    stated, mode = convention_of(convention, key), harmonics_of(harmonics, key)
    assert stated is not None
    assert mode is not None
    return Statement(stated, mode, w0_of({"w0_first": first, "w0_hidden": hidden}, key))


def converted_columns(
    weight: np.ndarray, stated: Statement, target: Statement, key: str
) -> np.ndarray:  # (H, L²) float64 -> same
    """First weight under another statement. Raises WeightsError where only published polynomials would do."""
    degrees = math.isqrt(weight.shape[1])
    theirs, ours = (folds_published(degrees, entry.convention, entry.harmonics) for entry in (stated, target))
    if ours and not theirs:
        raise WeightsError(
            f"{key}: its harmonics are exact, and cannot be turned into the published polynomials: load it "
            'with harmonics="exact"'
        )
    weight = weight * column_factors(degrees, stated.convention)
    if theirs and not ours:
        weight = fold_published(weight)
    return weight / column_factors(degrees, target.convention)


def agreed_modes(
    statement: Statement | None,
    convention: Convention | None,
    harmonics: Harmonics | None,
    w0: tuple[float, float],
    where: str,
) -> tuple[Convention | None, Harmonics | None]:
    """Convention and harmonics by a file's statement and by what else it says of them, None for nothing.

    Raises WeightsError where the two contradict each other.
    """
    if statement is None:
        return convention, harmonics
    pairs = (
        ("convention", statement.convention, convention),
        ("harmonics", statement.harmonics, harmonics),
        ("w0", statement.w0, w0),
    )
    for name, stated, other in pairs:
        if other is not None and other != stated:
            raise WeightsError(
                f"{where}: contradicts itself: {name} is {stated} by the module's own statement "
                f"({STATEMENT_KEY}) and {other} by the file's: save it again with model.to_weights().save(…)"
            )
    return statement.convention, statement.harmonics
