"""hf:// sources against a local server with the hub's paths; the client runs in processes of its own."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from satclip_engine.errors import MissingExtra, UsageError
from satclip_engine.weights import LocationWeights, read_weights
from satclip_engine.weights.hub import parse

pytest.importorskip("huggingface_hub")

COMMIT = "0123456789abcdef0123456789abcdef01234567"

# Prints, for every source, the hash of its weights or the error. In a process of its own, because the hub
# library reads the environment when it is imported.
CLIENT = """
import json, sys
from satclip_engine.weights import read_weights
answers = {}
for source in sys.argv[1:]:
    try:
        weights = read_weights(source)
        answers[source] = ["ok", weights.sha256, weights.provenance.source]
    except Exception as error:
        answers[source] = [type(error).__name__, str(error)]
print(json.dumps(answers))
"""


class Hub(ThreadingHTTPServer):
    """A hub with the repositories {name: {file: bytes}}; `asked` lists the requests."""

    daemon_threads = True

    def __init__(self, repositories: dict[str, dict[str, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories = repositories
        self.asked: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    """The hub's paths: model info, tree, resolve (HEAD and GET), with its headers and error codes."""

    server: Hub

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        parts = self.path.partition("?")[0].strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        repository = "/".join(parts[2:4] if api else parts[:2])
        files = self.server.repositories.get(repository)
        if files is None:
            self.say(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif api and parts[4:5] == ["tree"]:
            self.say_json([self.entry(name, content) for name, content in files.items()])
        elif api:
            siblings = [{"rfilename": name} for name in files]
            self.say_json({"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings})
        elif parts[2:3] == ["resolve"] and "/".join(parts[4:]) in files:
            content = files["/".join(parts[4:])]
            self.say(
                200, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
            )
        else:
            self.say(404, b"Entry not found", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET

    @staticmethod
    def entry(name: str, content: bytes) -> dict[str, Any]:
        return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def say_json(self, value: Any) -> None:
        self.say(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def say(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def weights() -> LocationWeights:
    rng = np.random.default_rng(0)
    shapes = {"layers.0": (4, 9), "last_layer": (3, 4)}
    tensors = {f"{name}.weight": rng.normal(size=shape) for name, shape in shapes.items()}
    tensors |= {f"{name}.bias": rng.normal(size=shape[0]) for name, shape in shapes.items()}
    return LocationWeights(tensors, "orthonormal")


@pytest.fixture
def hub(weights: LocationWeights, tmp_path: Path) -> Iterator[Hub]:
    weights.save(tmp_path / "w.safetensors")
    content = (tmp_path / "w.safetensors").read_bytes()
    server = Hub(
        {
            "org/single": {"README.md": b"hello", "weights.safetensors": content},
            "org/several": {"a.ckpt": b"", "b.safetensors": content, "deep/c.safetensors": content},
            "org/none": {"README.md": b"hello"},
            "org/damaged": {"w.safetensors": content[:-5]},
        }
    )
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def ask(endpoint: str, home: Path, *sources: str, **environment: str) -> dict[str, list[str]]:
    """What read_weights makes of `sources` in a fresh process."""
    clean = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, *sources],
        env=clean | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "*"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "Traceback" not in done.stderr
    assert "Retrying" not in done.stderr
    answers: dict[str, list[str]] = json.loads(done.stdout)
    return answers


def test_weights_come_from_the_hub_by_file_or_as_the_only_checkpoint(
    hub: Hub, weights: LocationWeights, tmp_path: Path
) -> None:
    sources = ("hf://org/single", "hf://org/several/b.safetensors", "hf://org/several/deep/c.safetensors")
    answers = ask(hub.endpoint, tmp_path / "home", *sources)
    assert answers == {source: ["ok", weights.sha256, source] for source in sources}
    assert any(line == "GET /org/single/resolve/main/weights.safetensors" for line in hub.asked)
    assert not any("README" in line for line in hub.asked)


def test_what_the_hub_does_not_have_is_told_in_one_line(hub: Hub, tmp_path: Path) -> None:
    expected = {
        "hf://org/absent": ("WeightsError", "no such repository"),
        "hf://org/absent/x.ckpt": ("WeightsError", "no such repository"),
        "hf://org/single/absent.ckpt": ("WeightsError", "no such file"),
        "hf://org/none": ("WeightsError", "no file ending in .ckpt or .safetensors"),
        "hf://org/several": ("UsageError", "name one of a.ckpt, b.safetensors, deep/c.safetensors"),
        "hf://org/single/README.md": ("WeightsError", "expected a name ending in .ckpt or .safetensors"),
        "hf://org/damaged": ("WeightsError", "truncated"),
    }
    answers = ask(hub.endpoint, tmp_path / "home", *expected)
    for source, (kind, text) in expected.items():
        assert answers[source][0] == kind
        assert text in answers[source][1]
        assert answers[source][1].startswith(source)
        assert "\n" not in answers[source][1]


def test_without_the_hub_a_cached_copy_is_used_and_anything_else_refused_in_one_line(
    hub: Hub, weights: LocationWeights, tmp_path: Path
) -> None:
    home, sources = tmp_path / "home", ("hf://org/single", "hf://org/several/b.safetensors")
    ask(hub.endpoint, home, *sources)
    asked = len(hub.asked)
    known = {source: ["ok", weights.sha256, source] for source in sources}
    assert ask(hub.endpoint, home, *sources, HF_HUB_OFFLINE="1") == known
    assert len(hub.asked) == asked
    nobody = "http://127.0.0.1:9"
    answers = ask(nobody, home, *sources, "hf://org/none", "hf://org/several/a.ckpt")
    refused = "http://127.0.0.1:9 does not answer, and the local cache has no copy"
    expected = {source: f"{source}: {refused}" for source in ("hf://org/none", "hf://org/several/a.ckpt")}
    assert answers == known | {source: ["WeightsError", text] for source, text in expected.items()}


def test_without_the_extra_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtra, match=r'pip install "satclip-engine\[hub\]"'):
        read_weights("hf://org/name")


@pytest.mark.parametrize("source", ["hf://", "hf://org", "hf://org/", "hf://org//file", "hf://org/name/../x"])
def test_a_malformed_name_is_a_usage_error(source: str) -> None:
    with pytest.raises(UsageError, match="expected hf://org/name or hf://org/name/file"):
        parse(source)


def test_a_file_may_lie_in_a_folder_of_the_repository() -> None:
    assert parse("hf://org/name") == ("org/name", None)
    assert parse("hf://org/name/deep/w.ckpt") == ("org/name", "deep/w.ckpt")
