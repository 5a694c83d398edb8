"""The table of implementations, best first. A row says why it cannot run; nothing else branches on a backend.

    resolve("auto", Device("cuda")).prepare(layers, device=Device("cuda")).encode(lonlat) -> (N, E)

"auto" takes the first row for such a device that runs here; a backend asked for by name runs or raises.
"""

from __future__ import annotations

from satclip_engine.backends.cpu import Cpu
from satclip_engine.backends.cuda import Cuda
from satclip_engine.backends.protocols import Backend
from satclip_engine.backends.reference import Reference
from satclip_engine.backends.triton import Triton
from satclip_engine.device import CPU, Device
from satclip_engine.errors import MissingExtra, UsageError

TABLE: tuple[Backend, ...] = (Triton(), Cuda(), Cpu(), Reference())
NAMES = ("auto", *(row.name for row in TABLE))


def resolve(name: str = "auto", device: Device = CPU) -> Backend:
    """The backend of that name, or for "auto" the first for such a device that runs here.

    Raises UsageError for an unknown name and for a device that is not there or not the backend's,
    MissingExtra when the backend asked for, or every one for the device, is not installed.
    """
    if name == "auto":
        return _best(device)
    for row in TABLE:
        if row.name == name:
            if (missing := row.missing()) is not None:
                raise MissingExtra(f"backend {name!r} cannot run here: {missing}", argument="backend")
            if (unfit := row.unfit(device)) is not None:
                raise UsageError(unfit, argument="device" if device.kind in row.devices else "backend")
            return row
    raise UsageError(f"unknown backend {name!r}: choose from {', '.join(NAMES)}", argument="backend")


def grids_only(name: str) -> str | None:
    """Why the backend of that name computes only separable grids, in a sentence; None when it does more."""
    return next((row.grids_only for row in TABLE if row.name == name), None)


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
