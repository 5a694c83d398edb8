"""The table of backends, best first, and the choice of one by name, for a device or for PyTorch's tensors.

    resolve("auto", Device("cuda")).prepare(layers, device=Device("cuda")).encode(lonlat) -> (N, E)
    resolve_for("auto", weight)      # float32: "triton" on a GPU, "cpu" on the CPU; other dtypes: "reference"

"auto" takes the first that runs here, for tensors at last the reference, which takes all; a backend asked for
by name runs or raises. Nothing else branches on a backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from satclip_engine.backends.cpu import Cpu
from satclip_engine.backends.cuda import Cuda
from satclip_engine.backends.protocols import Backend, TrainingBackend
from satclip_engine.backends.reference import Reference
from satclip_engine.backends.triton import Triton
from satclip_engine.device import CPU, Device
from satclip_engine.errors import MissingExtra, UsageError

if TYPE_CHECKING:
    from torch import Tensor

TABLE: tuple[Backend, ...] = (Triton(), Cuda(), Cpu(), Reference())
TRAINING = tuple(row for row in TABLE if isinstance(row, TrainingBackend))
NAMES = ("auto", *(row.name for row in TABLE))
TRAINING_NAMES = ("auto", *(row.name for row in TRAINING))

_Row = TypeVar("_Row", bound=Backend)


def resolve(name: str = "auto", device: Device = CPU) -> Backend:
    """The backend of that name, or for "auto" the first for such a device that runs here.

    Raises UsageError for an unknown name and for a device that is not there or not the backend's,
    MissingExtra when the backend asked for, or every one for the device, is not installed.
    """
    if name == "auto":
        return _best(device)
    row = _named(name, TABLE)
    _check_present(name, row.missing())
    if (unfit := row.unfit(device)) is not None:
        raise UsageError(unfit, argument="device" if device.kind in row.devices else "backend")
    return row


def resolve_for(name: str, tensor: Tensor) -> TrainingBackend:
    """The backend of that name, or for "auto" the first whose operators run here and take such tensors.

    Raises UsageError for an unknown name and for tensors that the backend asked for does not take,
    MissingExtra when it cannot run here.
    """
    if name == "auto":
        return next((row for row in TRAINING if _takes(row, tensor)), TRAINING[-1])
    row = _named(name, TRAINING)
    _check_present(name, row.operators_missing())
    if (unfit := row.unfit_tensor(tensor)) is not None:
        raise UsageError(
            f"backend {name!r} {unfit}: convert the tensors, or choose 'auto' or 'reference'",
            argument="backend",
        )
    return row


def grids_only(name: str) -> str | None:
    """Reason why the backend of that name computes only separable grids; None when it does more."""
    return next((row.grids_only for row in TABLE if row.name == name), None)


def float32_only(name: str) -> bool:
    """True for a backend whose operators take float32 alone; "auto" finds one for every dtype."""
    return name != "auto" and _named(name, TRAINING).float32_only


def _named(name: str, rows: Sequence[_Row]) -> _Row:
    for row in rows:
        if row.name == name:
            return row
    names = ", ".join(row.name for row in rows)
    raise UsageError(f"unknown backend {name!r}: choose from auto, {names}", argument="backend")


def _check_present(name: str, missing: str | None) -> None:
    if missing is not None:
        raise MissingExtra(f"backend {name!r} cannot run here: {missing}", argument="backend")


def _takes(row: TrainingBackend, tensor: Tensor) -> bool:
    """True where "auto" may choose it."""
    if tensor.device.type not in row.devices:
        return False
    return row.operators_missing() is None and row.unfit_tensor(tensor) is None


def _best(device: Device) -> Backend:
    rows = [row for row in TABLE if device.kind in row.devices]
    missing = {row: row.missing() for row in rows}
    unfit = {row: row.unfit(device) for row in rows if missing[row] is None}
    for row, reason in unfit.items():
        if reason is None:
            return row
    if unfit:
        raise UsageError(str(next(iter(unfit.values()))), argument="device")
    reasons = "; ".join(f"{row.name}: {reason}" for row, reason in missing.items())
    raise MissingExtra(reasons if device == CPU else f"device '{device}': {reasons}", argument="device")
