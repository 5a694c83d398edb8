"""Weights from the Hugging Face hub: hf://org/name[/file] → a file in the local hub cache.

HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE and HF_TOKEN mean what they mean to huggingface_hub. The endpoint is
passed on explicitly, because that library reads it once, when first imported.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from satclip_engine._optional import need
from satclip_engine.errors import UsageError, WeightsError

_SUFFIXES = (".ckpt", ".safetensors")


def download(source: str) -> Path:
    """Fetch `source` ("hf://org/name" or "hf://org/name/file") unless it is cached; return the local path.

    Without a file the repository must hold exactly one `.ckpt` or `.safetensors`. Raises UsageError for a
    malformed name or an ambiguous repository, WeightsError when hub, repository or file cannot be reached.
    """
    repository, file = parse(source)
    hub = need("huggingface_hub", extra="hub", why="reading hf:// weights")
    endpoint = os.environ.get("HF_ENDPOINT") or None
    if file is None:
        file = _only_checkpoint(hub, source, repository, endpoint)
    try:
        return Path(hub.hf_hub_download(repository, file, endpoint=endpoint))
    except Exception as error:
        raise _failure(source, error) from error


def parse(source: str) -> tuple[str, str | None]:
    """("org/name", file or None) of hf://org/name[/file]."""
    parts = source.removeprefix("hf://").strip("/").split("/")
    if len(parts) < 2 or not all(parts) or ".." in parts:
        raise UsageError(f"{source!r}: expected hf://org/name or hf://org/name/file")
    return "/".join(parts[:2]), "/".join(parts[2:]) or None


def _only_checkpoint(hub: Any, source: str, repository: str, endpoint: str | None) -> str:
    """The repository's single checkpoint; when the hub cannot be reached, that of the cached copy."""
    try:
        files = hub.HfApi(endpoint=endpoint).list_repo_files(repository)
    except Exception as error:
        try:
            snapshot = Path(hub.snapshot_download(repository, endpoint=endpoint, local_files_only=True))
        except Exception:
            raise _failure(source, error) from error
        files = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()]
    found = sorted(name for name in files if name.lower().endswith(_SUFFIXES))
    if not found:
        raise WeightsError(f"{source}: the repository holds no file ending in {' or '.join(_SUFFIXES)}")
    if len(found) > 1:
        raise UsageError(f"{source}: several checkpoints, name one of {', '.join(found)}")
    return found[0]


def _failure(source: str, error: Exception) -> WeightsError:
    """One line for the many exceptions of huggingface_hub."""
    kind = type(error).__name__
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if kind in ("RepositoryNotFoundError", "GatedRepoError"):
        return WeightsError(f"{source}: {endpoint} has no such repository, or it is private (set HF_TOKEN)")
    if kind in ("RemoteEntryNotFoundError", "EntryNotFoundError"):
        return WeightsError(f"{source}: no such file in that repository at {endpoint}")
    if kind in ("LocalEntryNotFoundError", "OfflineModeIsEnabled"):
        return WeightsError(f"{source}: {endpoint} cannot be reached, and the file is not in the local cache")
    text = str(error).strip().splitlines() or [""]
    return WeightsError(f"{source}: cannot be fetched from {endpoint} ({kind}: {text[0]})")
