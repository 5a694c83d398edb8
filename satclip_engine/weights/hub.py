"""Download of weights from the Hugging Face hub: hf://org/name[/file] → a file in the local hub cache.

HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE and HF_TOKEN mean what they mean to huggingface_hub. The endpoint is
passed on explicitly, because that library reads it once, when first imported.
"""

from __future__ import annotations

import logging
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final

from satclip_engine._optional import need
from satclip_engine.errors import UsageError, WeightsError

_SUFFIXES: Final = (".ckpt", ".safetensors")
_MAX_LISTED: Final = 12  # checkpoints in a message
_ANSWER_SECONDS: Final = 10.0  # for the first answer; the library itself retries for half a minute


def download(source: str) -> Path:
    """Fetch `source` ("hf://org/name" or "hf://org/name/file") unless it is cached; return the local path.

    Without a file the repository must hold exactly one `.ckpt` or `.safetensors`. A cached copy serves
    when the hub does not answer. Raises UsageError for a malformed name or an ambiguous repository, and
    WeightsError when repository or file cannot be had.
    """
    repository, file = parse(source)
    library = need("huggingface_hub", extra="hub", why="reading hf:// weights")
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    remote = _Remote(library, source, repository, endpoint, offline=not _answers(endpoint))
    with _quiet():
        return remote.fetch(file or remote.only_checkpoint())


def parse(source: str) -> tuple[str, str | None]:
    """Split hf://org/name[/file] into "org/name" and file or None."""
    parts = source.removeprefix("hf://").strip("/").split("/")
    if len(parts) < 2 or not all(parts) or ".." in parts:
        raise UsageError(f"{source!r}: expected hf://org/name or hf://org/name/file", argument="source")
    return "/".join(parts[:2]), "/".join(parts[2:]) or None


@dataclass(frozen=True)
class _Remote:
    """Repository on a hub, or the cache's copy of it."""

    library: ModuleType
    source: str
    repository: str
    endpoint: str
    offline: bool

    def fetch(self, file: str) -> Path:
        try:
            path = self.library.hf_hub_download(
                self.repository, file, endpoint=self.endpoint, local_files_only=self.offline
            )
        except Exception as error:
            raise self._failure(error) from error
        return Path(path)

    def only_checkpoint(self) -> str:
        """Name of the single checkpoint in the repository."""
        try:
            files = self._cached_files() if self.offline else self._listed_files()
        except Exception as error:
            raise self._failure(error) from error
        checkpoints = sorted(name for name in files if name.lower().endswith(_SUFFIXES))
        if not checkpoints:
            raise WeightsError(
                f"{self.source}: the repository has no file ending in {' or '.join(_SUFFIXES)}"
            )
        if len(checkpoints) > 1:
            raise UsageError(
                f"{self.source}: several checkpoints, name one of {', '.join(checkpoints[:_MAX_LISTED])}"
                f"{', …' if len(checkpoints) > _MAX_LISTED else ''}",
                argument="source",
            )
        return checkpoints[0]

    def _listed_files(self) -> list[str]:
        return list(self.library.HfApi(endpoint=self.endpoint).list_repo_files(self.repository))

    def _cached_files(self) -> list[str]:
        snapshot = Path(self.library.snapshot_download(self.repository, local_files_only=True))
        return [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()]

    def _failure(self, error: Exception) -> WeightsError:
        """Turn the many exceptions of huggingface_hub into one line."""
        kind = type(error).__name__
        if self.offline:
            return WeightsError(
                f"{self.source}: {self.endpoint} does not answer, and the local cache has no copy"
            )
        if kind in ("RepositoryNotFoundError", "GatedRepoError"):
            return WeightsError(
                f"{self.source}: {self.endpoint} has no such repository, or it needs a token (HF_TOKEN)"
            )
        if "EntryNotFound" in kind and not kind.startswith("Local"):
            return WeightsError(f"{self.source}: the repository at {self.endpoint} has no such file")
        text = str(error.__cause__ or error).strip().splitlines() or [kind]
        return WeightsError(f"{self.source}: cannot be fetched from {self.endpoint} ({text[0]})")


def _answers(endpoint: str) -> bool:
    """True where the hub answers at all; asked first, so that a laptop without network does not wait."""
    constants = need("huggingface_hub.constants", extra="hub", why="reading hf:// weights")
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        urllib.request.urlopen(
            urllib.request.Request(endpoint, method="HEAD"), timeout=_ANSWER_SECONDS
        ).close()
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # the library may know certificates that we do not
    except OSError:
        return False
    return True


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's warnings about retries out of the way: its exception becomes our one line."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
