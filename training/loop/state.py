"""State of a run for resuming: one dictionary in one file, written atomically, in two generations.

    save_state(folder, state)       state.pt; the one before becomes state.previous.pt
    load_state(folder)              the newest whole one, and a note when it is not the newest of all

A file is a line, the sha256 of the rest, and what torch.save writes: plain values and tensors. The line's
number says by which rules steps follow from the state: how samples are split and weights averaged.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any, Final

import torch

from satclip_engine.errors import OutputError, WeightsError
from satclip_engine.files import sync_folder, write_atomically

NEWEST: Final = "state.pt"
PREVIOUS: Final = "state.previous.pt"
NEXT: Final = "state.next.pt"  # being made newest
_MAGIC: Final = b"satclip-train state 2\n"
_FAMILY: Final = _MAGIC[:-3]  # of all versions
_DIGEST_BYTES: Final = 64


def has_state(folder: Path) -> bool:
    """True where a run has left a state, whole or not."""
    return (folder / NEWEST).exists() or (folder / PREVIOUS).exists()


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Save `state`, keeping the one before. Raises OutputError, and then nothing has changed."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    digest = hashlib.sha256(content).hexdigest().encode()
    newest = folder / NEWEST
    try:
        write_atomically(folder / NEXT, _MAGIC + digest + content)
        if newest.exists():
            newest.replace(folder / PREVIOUS)
        (folder / NEXT).replace(newest)
        sync_folder(folder)
    except OSError as error:
        message = str(error) if isinstance(error, OutputError) else f"cannot write {newest}: {error}"
        whole = "; the checkpoint before is whole" if has_state(folder) else ""
        raise OutputError(f"{message}{whole}") from error


def load_state(folder: Path) -> tuple[dict[str, Any], str]:
    """Load the newest state that is whole, and a note when it is not the newest of all ("" otherwise).

    Raises WeightsError when there is none.
    """
    faults = []
    for name in (NEWEST, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        try:
            state = _read(path)
        except WeightsError as error:
            faults.append(str(error))
            continue
        note = f"{'; '.join(faults)}: resuming from the one before, step {state['step']}" if faults else ""
        return state, note
    if faults:
        raise WeightsError(f"{'; '.join(faults)}; none can be resumed: start over with --overwrite")
    raise WeightsError(f"{folder}: there is no run to resume: expected {NEWEST}; leave out --resume")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from error
    start = len(_MAGIC) + _DIGEST_BYTES
    digest, body = content[len(_MAGIC) : start], content[start:]
    if content.startswith(_FAMILY) and not content.startswith(_MAGIC):
        raise WeightsError(
            f"{path} is of another version of satclip-train, which splits or averages otherwise"
        )
    if not content.startswith(_MAGIC) or hashlib.sha256(body).hexdigest().encode() != digest:
        raise WeightsError(f"{path} is damaged or cut off ({len(content)} bytes)")
    try:
        state = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except Exception as error:  # torch's advice would be to load it unsafely
        raise WeightsError(f"{path} is damaged: its pickle cannot be read") from error
    if not isinstance(state, dict):
        raise WeightsError(f"{path}: expected a dictionary, found {type(state).__name__}")
    return state
