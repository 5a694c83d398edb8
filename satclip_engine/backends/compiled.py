"""The compiled core `_C`, or the reason why it cannot be loaded."""

from __future__ import annotations

try:
    from satclip_engine import _C

    MISSING = ""
except ImportError as error:  # an installation without the compiled core still has the reference
    _C = None  # type: ignore[assignment]
    MISSING = f"the compiled kernels cannot be loaded ({error}); reinstall satclip-engine"

__all__ = ["MISSING", "_C"]
